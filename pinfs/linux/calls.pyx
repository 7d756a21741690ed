# cython: language_level=3
# distutils: define_macros=_GNU_SOURCE=1
"""System calls that say what went wrong by its errno: calls.py, compiled."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t

cdef extern from "<fcntl.h>" nogil:
    int AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, O_CLOEXEC
    int openat(int directory_fd, const char *name, int flags, unsigned int mode)

cdef extern from "<stdio.h>" nogil:
    int renameat2(int old_fd, const char *old, int new_fd, const char *new, unsigned int flags)

cdef extern from "<sys/fsuid.h>" nogil:
    int setfsuid(unsigned int uid)
    int setfsgid(unsigned int gid)

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)
    int unlinkat(int directory_fd, const char *name, int flags)

cdef extern from "<sys/xattr.h>" nogil:
    int c_setxattr "setxattr"(const char *path, const char *name, const void *value, size_t size, int flags)
    int c_fsetxattr "fsetxattr"(int fd, const char *name, const void *value, size_t size, int flags)
    int c_removexattr "removexattr"(const char *path, const char *name)
    int c_fremovexattr "fremovexattr"(int fd, const char *name)

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/aio_abi.h>
    #include <linux/fuse.h>
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifndef FUSE_DEV_IOC_BACKING_OPEN /* the headers are older than Linux 6.9 */
    struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };
    #define FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, struct fuse_backing_map)
    #define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)
    #endif

    static int open_backing_file(int connection, int fd) {
        struct fuse_backing_map map = {.fd = fd};
        return ioctl(connection, FUSE_DEV_IOC_BACKING_OPEN, &map);
    }

    static int close_backing_file(int connection, uint32_t id) {
        return ioctl(connection, FUSE_DEV_IOC_BACKING_CLOSE, &id);
    }

    /* By the descriptor itself where the kernel can (fchmodat2: 6.6; AT_EMPTY_PATH of utimensat: 5.8), else by its path in procfs. */
    static int set_mode_of(int fd, int is_path, unsigned mode) {
        char path[32];
        if (!is_path) return fchmod(fd, mode);
    #ifndef SYS_fchmodat2
    #define SYS_fchmodat2 452
    #endif
        if (!syscall(SYS_fchmodat2, fd, "", mode, AT_EMPTY_PATH)) return 0;
        if (errno != ENOSYS && errno != EINVAL) return -1;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        return chmod(path, mode);
    }

    static int set_times_of(int fd, int is_path, const struct timespec *times) {
        char path[32];
        if (!is_path) return futimens(fd, times);
        if (!utimensat(fd, "", times, AT_EMPTY_PATH)) return 0;
        if (errno != EINVAL) return -1;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        return utimensat(AT_FDCWD, path, times, 0);
    }

    static int get_attributes(int fd, uint64_t *attributes) {
        struct statx st;
        int failed = statx(fd, "", AT_EMPTY_PATH, 0, &st);
        *attributes = failed ? 0 : st.stx_attributes;
        return failed;
    }

    static int submit_read(size_t context, int empty_fd, int eventfd) {
        struct iocb read = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = empty_fd, .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = eventfd};
        struct iocb *reads[] = {&read};
        struct io_event done;
        int submitted = syscall(SYS_io_submit, (aio_context_t)context, 1, reads), number = errno;
        syscall(SYS_io_getevents, (aio_context_t)context, 0, 1, &done, NULL);
        errno = number;
        return submitted < 0 ? -1 : 0;
    }

    static int send_queued_signal(int pidfd, int signo, uint64_t value) {
        siginfo_t info;
        memset(&info, 0, sizeof info);
        info.si_signo = signo;
        info.si_code = SI_QUEUE;
        info.si_pid = getpid();
        info.si_uid = getuid();
        info.si_value.sival_ptr = (void *)(uintptr_t)value;
    #ifndef SYS_pidfd_send_signal
    #define SYS_pidfd_send_signal 424
    #endif
        return syscall(SYS_pidfd_send_signal, pidfd, signo, &info, 0);
    }
    """
    long UTIME_NOW
    int open_backing_file(int connection, int fd) nogil
    int close_backing_file(int connection, unsigned int id) nogil
    int set_mode_of(int fd, bint is_path, unsigned int mode) nogil
    int set_times_of(int fd, bint is_path, const timespec *times) nogil
    int get_attributes(int fd, uint64_t *attributes) nogil
    int submit_read(size_t context, int empty_fd, int eventfd) nogil
    int send_queued_signal(int pidfd, int signo, uint64_t value) nogil

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int poll(pollfd *fds, unsigned long count, int wait_ms)

cdef extern from "<sys/stat.h>" nogil:
    int c_fstat "fstat"(int fd, c_stat *st)
    int c_fstatat "fstatat"(int fd, const char *name, c_stat *st, int flags)
    int mkdirat(int directory_fd, const char *name, unsigned int mode)

cdef extern from "<time.h>" nogil:
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef extern from "<pthread.h>":
    ctypedef unsigned long pthread_t
    pthread_t pthread_self() noexcept

cdef extern from "Python.h":
    PyThreadState *PyEval_SaveThread() noexcept
    void PyEval_RestoreThread(PyThreadState *state) noexcept

cdef pthread_t event_loop = 0


def call_at_once_here():
    global event_loop
    event_loop = pthread_self()


cdef PyThreadState *leave() noexcept:
    """A system call begins: other threads may run, unless this is the event loop (calls.py)."""
    return NULL if pthread_self() == event_loop else PyEval_SaveThread()


cdef void back(PyThreadState *state) noexcept:
    """It has ended. Leaves errno as it is."""
    if state != NULL:
        PyEval_RestoreThread(state)


cdef int64_t NS = 1000000000
NOW = 1 << 64


cpdef double clock() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class Stat:
    cdef void known(self) noexcept:
        cdef c_stat *raw = &self.raw
        self.st_dev, self.st_ino, self.st_nlink = raw.st_dev, raw.st_ino, raw.st_nlink
        self.st_mode, self.st_uid, self.st_gid = raw.st_mode, raw.st_uid, raw.st_gid
        self.st_size, self.st_ctime_ns = raw.st_size, raw.st_ctim.tv_sec * NS + raw.st_ctim.tv_nsec

    def fill(self, result):
        cdef c_stat *raw = &self.raw
        raw.st_dev, raw.st_ino, raw.st_nlink = result.st_dev, result.st_ino, result.st_nlink
        raw.st_mode, raw.st_uid, raw.st_gid = result.st_mode, result.st_uid, result.st_gid
        raw.st_rdev, raw.st_size = result.st_rdev, result.st_size
        raw.st_blksize, raw.st_blocks = result.st_blksize, result.st_blocks
        raw.st_atim.tv_sec, raw.st_atim.tv_nsec = divmod(result.st_atime_ns, NS)
        raw.st_mtim.tv_sec, raw.st_mtim.tv_nsec = divmod(result.st_mtime_ns, NS)
        raw.st_ctim.tv_sec, raw.st_ctim.tv_nsec = divmod(result.st_ctime_ns, NS)
        self.known()


cpdef Stat stat_of(object result):
    cdef Stat st = Stat()
    st.fill(result)
    return st


cpdef int stat_at(int directory_fd, bytes name, Stat st) noexcept:
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef int failed
    cdef PyThreadState *state = leave()
    failed = c_fstatat(directory_fd, text, &st.raw, AT_SYMLINK_NOFOLLOW)
    back(state)
    if failed:
        return errno
    st.known()
    return 0


cpdef int stat_fd(int fd, Stat st) noexcept:
    cdef int failed
    cdef PyThreadState *state = leave()
    failed = c_fstat(fd, &st.raw)
    back(state)
    if failed:
        return errno
    st.known()
    return 0


cpdef bint is_readable(int fd) noexcept:
    cdef pollfd watched
    watched.fd, watched.events, watched.revents = fd, POLLIN, 0
    return poll(&watched, 1, 0) > 0


cdef inline int done(int result) except -1:
    """OSError, where a system call has failed."""
    if result < 0:
        PyErr_SetFromErrno(OSError)
    return result


cpdef uint64_t attributes_of(int fd) except? 0xFFFFFFFFFFFFFFFF:
    cdef uint64_t attributes
    cdef int failed
    cdef PyThreadState *state = leave()
    failed = get_attributes(fd, &attributes)
    back(state)
    done(failed)
    return attributes


cpdef int read_and_signal(size_t context, int empty_fd, int eventfd) except -1:
    return done(submit_read(context, empty_fd, eventfd))


cpdef bint queue_signal(int pidfd, int signo, uint64_t value) noexcept:
    return not send_queued_signal(pidfd, signo, value)


cpdef int close_fd(int fd) except -1:
    cdef PyThreadState *state = leave()
    cdef int result = c_close(fd)
    back(state)
    return done(result)


cpdef int open_at(int directory_fd, bytes name, int flags, unsigned int mode) except -1:
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef int fd = -1
    cdef PyThreadState *state = leave()
    while True:
        fd = openat(directory_fd, text, flags | O_CLOEXEC, mode)
        if fd >= 0 or errno != EINTR:
            break
    back(state)
    return done(fd)


cpdef int unlink_at(int directory_fd, bytes name) except -1:
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef int result
    cdef PyThreadState *state = leave()
    result = unlinkat(directory_fd, text, 0)
    back(state)
    return done(result)


cpdef int rmdir_at(int directory_fd, bytes name) except -1:
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef int result
    cdef PyThreadState *state = leave()
    result = unlinkat(directory_fd, text, AT_REMOVEDIR)
    back(state)
    return done(result)


cpdef int mkdir_at(int directory_fd, bytes name, unsigned int mode) except -1:
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef int result
    cdef PyThreadState *state = leave()
    result = mkdirat(directory_fd, text, mode)
    back(state)
    return done(result)


cpdef int rename_at(int old_fd, bytes old, int new_fd, bytes new, unsigned int flags) except -1:
    cdef const char *from_ = PyBytes_AS_STRING(old)
    cdef const char *to = PyBytes_AS_STRING(new)
    cdef int result
    cdef PyThreadState *state = leave()
    result = renameat2(old_fd, from_, new_fd, to, flags)
    back(state)
    return done(result)


cpdef set_fs_ids(unsigned int uid, unsigned int gid):
    setfsgid(gid)
    setfsuid(uid)


cpdef int set_mode(int fd, bint is_path, unsigned int mode) except -1:
    cdef int result
    cdef PyThreadState *state = leave()
    result = set_mode_of(fd, is_path, mode)
    back(state)
    return done(result)


cpdef int set_times(int fd, bint is_path, object atime_ns, object mtime_ns) except -1:
    cdef timespec times[2]
    cdef int result
    put_time(&times[0], atime_ns)
    put_time(&times[1], mtime_ns)
    cdef PyThreadState *state = leave()
    result = set_times_of(fd, is_path, times)
    back(state)
    return done(result)


cdef int put_time(timespec *time, object ns) except -1:
    if ns == NOW:
        time.tv_sec, time.tv_nsec = 0, UTIME_NOW
    else:
        time.tv_sec, time.tv_nsec = divmod(ns, NS)
    return 0


cpdef int set_attribute(object where, bytes name, bytes value, int flags) except -1:
    cdef PyThreadState *state
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef const char *data = PyBytes_AS_STRING(value)
    cdef size_t size = len(value)
    cdef const char *path
    cdef int result, fd
    if isinstance(where, bytes):
        path = PyBytes_AS_STRING(where)
        state = leave()
        result = c_setxattr(path, text, data, size, flags)
        back(state)
    else:
        fd = where
        state = leave()
        result = c_fsetxattr(fd, text, data, size, flags)
        back(state)
    return done(result)


cpdef int remove_attribute(object where, bytes name) except -1:
    cdef PyThreadState *state
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef const char *path
    cdef int result, fd
    if isinstance(where, bytes):
        path = PyBytes_AS_STRING(where)
        state = leave()
        result = c_removexattr(path, text)
        back(state)
    else:
        fd = where
        state = leave()
        result = c_fremovexattr(fd, text)
        back(state)
    return done(result)


cpdef int open_backing(int connection_fd, int fd) except -1:
    cdef int result
    cdef PyThreadState *state = leave()
    result = open_backing_file(connection_fd, fd)
    back(state)
    return done(result)


cpdef int close_backing(int connection_fd, int backing_id) except -1:
    cdef int result
    cdef PyThreadState *state = leave()
    result = close_backing_file(connection_fd, backing_id)
    back(state)
    return done(result)
