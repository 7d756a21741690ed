# cython: language_level=3, boundscheck=False, wraparound=False
"""The connection to the kernel, as the fast path uses it: channel.py, compiled."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, EIO, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memset

from pinfs.linux.calls cimport PyThreadState, Stat, back, c_stat, clock, leave

cdef extern from *:
    """
    #include <linux/fuse.h>
    #include <poll.h>
    #include <sys/uio.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    """
    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique
    struct fuse_attr:
        uint64_t ino
        uint64_t size
        uint64_t blocks
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint32_t rdev
        uint32_t blksize
    struct fuse_attr_out:
        uint64_t attr_valid
        uint32_t attr_valid_nsec
        fuse_attr attr
    struct fuse_entry_out:
        uint64_t nodeid
        uint64_t generation
        uint64_t entry_valid
        uint64_t attr_valid
        uint32_t entry_valid_nsec
        uint32_t attr_valid_nsec
        fuse_attr attr
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *parts, int count) nogil
    int poll(pollfd *fds, unsigned long count, int wait_ms) nogil
    ssize_t c_read "read"(int fd, void *into, size_t size) nogil
    ssize_t c_write "write"(int fd, const void *data, size_t size) nogil
    ssize_t c_getxattr "getxattr"(const char *path, const char *name, void *value, size_t size) nogil
    ssize_t c_fgetxattr "fgetxattr"(int fd, const char *name, void *value, size_t size) nogil

cdef struct open_out:  # struct fuse_open_out; the last is `padding` in headers before Linux 6.9
    uint64_t fh
    uint32_t open_flags
    int32_t backing_id

cdef struct in_header:  # struct fuse_in_header; the last two are one number, `padding`, in headers before Linux 6.3
    uint32_t len
    uint32_t opcode
    uint64_t unique
    uint64_t nodeid
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint16_t total_extlen
    uint16_t padding

cdef enum:
    IN_SIZE = 40
    OUT_SIZE = 16
    FULL_CREDIT = 16  # of spins, as in channel.py
    IN_VAIN = 4
    PAUSE = 64
    NOTHING = -2
    MANY = 8  # requests in one turn, before reads block
    TURN_MS = 5  # of the waker's ticks as well: a shorter wait is one for tasks of trio


cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdatomic.h>
    #include <stdlib.h>
    #include <sys/eventfd.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    /* A read that blocks, and a thread that ends it by a signal when it has found no request for two ticks. The reader
       is sent the signal only while it is in the read, and returns from there only when it has been delivered: no other
       call of its ends with EINTR. Where there is nothing to read the thread sleeps. */

    enum { AWAY, READING, SIGNALLING, SIGNALLED };

    typedef struct waker {
        pthread_t reader, thread;
        atomic_int state;
        atomic_ulong reads;
        atomic_int watches, ends;
        int wake;
        pid_t pid;  /* whose thread it is: not of a child that has forked */
    } waker;

    static void do_nothing(int signo) { (void)signo; }

    static void *watch(void *argument) {
        waker *w = argument;
        const struct timespec tick = {.tv_nsec = 5000000};
        unsigned long last = 0;
        eventfd_t woken;
        while (!atomic_load(&w->ends)) {
            if (!atomic_load(&w->watches)) {
                eventfd_read(w->wake, &woken);
                continue;
            }
            nanosleep(&tick, NULL);
            unsigned long reads = atomic_load(&w->reads);
            int reading = READING, signalled = SIGNALLED;  /* again: it may have come before the reader slept */
            if (reads == last && (atomic_compare_exchange_strong(&w->state, &reading, SIGNALLING)
                                  || atomic_compare_exchange_strong(&w->state, &signalled, SIGNALLING))) {
                pthread_kill(w->reader, SIGRTMAX);
                atomic_store(&w->state, SIGNALLED);
            }
            last = reads;
        }
        return NULL;
    }

    static waker *new_waker(void) {
        struct sigaction action = {.sa_handler = do_nothing};
        sigset_t all, before;
        pthread_attr_t attributes;
        waker *w = calloc(1, sizeof *w);
        if (!w) return NULL;
        w->pid = getpid();
        w->wake = eventfd(0, EFD_CLOEXEC);
        if (w->wake < 0) { free(w); return NULL; }
        sigaction(SIGRTMAX, &action, NULL);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 65536);
        int failed = pthread_create(&w->thread, &attributes, watch, w);
        pthread_attr_destroy(&attributes);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (failed) { close(w->wake); free(w); return NULL; }
        return w;
    }

    static void end_waker(waker *w) {
        if (w->pid != getpid()) return;
        atomic_store(&w->ends, 1);
        eventfd_write(w->wake, 1);
        pthread_join(w->thread, NULL);
        close(w->wake);
        free(w);
    }

    static void begin_watching(waker *w) {
        sigset_t ours;
        sigemptyset(&ours);
        sigaddset(&ours, SIGRTMAX);
        pthread_sigmask(SIG_UNBLOCK, &ours, NULL);  /* whoever started the program may have blocked it */
        w->reader = pthread_self();
        if (!atomic_exchange(&w->watches, 1)) eventfd_write(w->wake, 1);
    }

    static void stop_watching(waker *w) { atomic_store(&w->watches, 0); }

    static ssize_t blocking_read(waker *w, int fd, void *into, size_t size) {
        atomic_fetch_add(&w->reads, 1);
        atomic_store(&w->state, READING);
        ssize_t got = read(fd, into, size);
        int number = errno, state = READING;
        while (!atomic_compare_exchange_strong(&w->state, &state, AWAY)) {
            if (state == SIGNALLED) {
                syscall(SYS_getppid);  /* signals are delivered at its end */
                continue;
            }
            sched_yield();
            state = READING;
        }
        errno = number;
        return got;
    }

    static int set_blocking(int fd, int blocks) {
        int flags = fcntl(fd, F_GETFL);
        return flags < 0 ? flags : fcntl(fd, F_SETFL, blocks ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
    }
    """
    ctypedef struct waker:
        pass
    waker *new_waker() noexcept
    void end_waker(waker *w) noexcept nogil
    void begin_watching(waker *w) noexcept
    ssize_t blocking_read(waker *w, int fd, void *into, size_t size) noexcept nogil
    int set_blocking(int fd, int blocks) noexcept
    void stop_watching(waker *w) noexcept

cdef extern from "Python.h":
    ctypedef struct PyInterpreterState:
        pass
    PyInterpreterState *PyInterpreterState_Get() noexcept
    PyThreadState *PyInterpreterState_ThreadHead(PyInterpreterState *interpreter) noexcept
    PyThreadState *PyThreadState_Next(PyThreadState *state) noexcept
    PyThreadState *PyEval_SaveThread() noexcept


cdef inline PyThreadState *sleep_begins() noexcept:
    """Other threads may run until `back`, where there are any: only a running one begins another."""
    cdef bint alone = PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get())) == NULL
    return NULL if alone else PyEval_SaveThread()


cdef inline void put_attributes(fuse_attr *to, uint64_t nodeid, Stat st) noexcept:
    cdef c_stat *raw = &st.raw
    memset(to, 0, sizeof(fuse_attr))
    to.ino, to.size, to.blocks = nodeid, raw.st_size, raw.st_blocks
    to.atime, to.atimensec = raw.st_atim.tv_sec, <uint32_t>raw.st_atim.tv_nsec
    to.mtime, to.mtimensec = raw.st_mtim.tv_sec, <uint32_t>raw.st_mtim.tv_nsec
    to.ctime, to.ctimensec = raw.st_ctim.tv_sec, <uint32_t>raw.st_ctim.tv_nsec
    to.mode, to.nlink, to.uid, to.gid = raw.st_mode, <uint32_t>raw.st_nlink, raw.st_uid, raw.st_gid
    to.rdev, to.blksize = <uint32_t>raw.st_rdev, <uint32_t>raw.st_blksize


cdef class Channel:
    def __init__(self, int fd, bytearray buffer, int busy_poll_us=0):
        self.fd = fd
        self._busy_poll_s = busy_poll_us / 1e6
        self._credit = FULL_CREDIT
        self.reply = b""
        self.use(buffer)

    cpdef use(self, bytearray buffer):
        self.buffer = buffer
        self.raw = PyByteArray_AS_STRING(buffer)
        self.room = PyByteArray_GET_SIZE(buffer)

    # The request

    cpdef int take(self, int wait_ms) noexcept:
        cdef PyThreadState *state
        cdef in_header *header = <in_header *>self.raw
        cdef ssize_t size
        if self._blocks:
            state = sleep_begins()
            size = blocking_read(<waker *>self._waker, self.fd, self.raw, self.room)
            back(state)
            if size < 0 and errno == EINTR:
                self._end_blocking()
                return 0
        else:
            size = self._read_within(wait_ms)
            if size == NOTHING:
                return 0
            self._taken += 1
            if self._taken == MANY and wait_ms >= TURN_MS:
                self._begin_blocking()
        if size < 0:
            self.error = errno
            return -1
        self.size = size
        self.error = self.umask = 0
        self.opcode = 0
        if size >= IN_SIZE:
            if header.len == size and not header.total_extlen:
                self.opcode = header.opcode
            self.unique, self.nodeid = header.unique, header.nodeid
            self.uid, self.gid, self.pid = header.uid, header.gid, header.pid
        return 1

    cdef ssize_t _read_within(self, int wait_ms) noexcept:
        """read(2), which fails for want of requests after `wait_ms` only: NOTHING."""
        cdef PyThreadState *state
        cdef pollfd watched
        cdef int ready
        cdef ssize_t size = c_read(self.fd, self.raw, self.room)
        cdef double until
        if size < 0 and errno == EAGAIN and wait_ms and self._may_spin():
            until = clock() + self._busy_poll_s
            while True:
                with nogil:
                    size = c_read(self.fd, self.raw, self.room)
                if size >= 0 or errno != EAGAIN:
                    self._credit = min(self._credit + 1, FULL_CREDIT)
                    break
                if clock() >= until:
                    self._credit -= IN_VAIN
                    if self._credit <= 0:
                        self._credit = -PAUSE
                    break
        if size < 0 and errno == EAGAIN:  # a request is often there already: it costs one call less then
            watched.fd, watched.events, watched.revents = self.fd, POLLIN, 0
            state = sleep_begins()
            ready = poll(&watched, 1, wait_ms)
            back(state)
            size = c_read(self.fd, self.raw, self.room) if ready > 0 else NOTHING
        return size

    cdef void _begin_blocking(self) noexcept:
        """Requests come one after the other: from here to the end of the turn, each is one call less."""
        if self._busy_poll_s:
            return
        if self._waker == NULL:
            self._waker = new_waker()
        if self._waker != NULL and not set_blocking(self.fd, True):
            self._blocks = True
            begin_watching(<waker *>self._waker)

    cdef void _end_blocking(self) noexcept:
        stop_watching(<waker *>self._waker)
        set_blocking(self.fd, False)
        self._blocks = False

    cpdef settle(self):
        if self._blocks:
            self._end_blocking()
        self._taken = 0

    def __dealloc__(self):
        if self._waker != NULL:
            end_waker(<waker *>self._waker)

    cdef bint _may_spin(self) noexcept:
        if self._busy_poll_s and self._credit <= 0:
            self._credit += 1
        return self._busy_poll_s != 0 and self._credit > 0

    cpdef uint32_t u32(self, Py_ssize_t at) noexcept:
        return (<uint32_t *>(self.raw + IN_SIZE + at))[0]

    cpdef uint64_t u64(self, Py_ssize_t at) noexcept:
        return (<uint64_t *>(self.raw + IN_SIZE + at))[0]

    cpdef int64_t i64(self, Py_ssize_t at) noexcept:
        return (<int64_t *>(self.raw + IN_SIZE + at))[0]

    cpdef bytes name(self, Py_ssize_t at):
        cdef char *text = self.raw + IN_SIZE + at
        cdef Py_ssize_t length = self.size - IN_SIZE - at - 1
        if length < 1 or text[length] or memchr(text, 0, length) != NULL or memchr(text, c"/", length) != NULL:
            return b""
        return PyBytes_FromStringAndSize(text, length)

    cpdef tuple two(self, Py_ssize_t at):
        cdef char *text = self.raw + IN_SIZE + at
        cdef Py_ssize_t length = self.size - IN_SIZE - at
        cdef char *end = <char *>memchr(text, 0, length) if length > 0 else NULL
        cdef char *second_end
        cdef Py_ssize_t first, second
        if end != NULL:
            first = end - text
            second = length - first - 1
            second_end = <char *>memchr(end + 1, 0, second) if second > 0 else NULL
            if second_end == text + length - 1:
                return PyBytes_FromStringAndSize(text, first), PyBytes_FromStringAndSize(end + 1, second - 1)
        return b"", b""

    cpdef tuple name_and_value(self, Py_ssize_t at, Py_ssize_t size):
        cdef char *text = self.raw + IN_SIZE + at
        cdef Py_ssize_t length = self.size - IN_SIZE - at
        cdef char *end = <char *>memchr(text, 0, length) if length > 0 else NULL
        cdef Py_ssize_t first
        if end != NULL:
            first = end - text
            if length - first - 1 == size:
                return PyBytes_FromStringAndSize(text, first), PyBytes_FromStringAndSize(end + 1, size)
        return b"", b""

    cpdef object view(self, Py_ssize_t at):
        return memoryview(self.buffer)[IN_SIZE + at : self.size]

    # The reply

    cdef bint send(self, int number, size_t body) except -1:
        cdef fuse_out_header *header = <fuse_out_header *>self.out
        header.len, header.error, header.unique = <uint32_t>(OUT_SIZE + body), -number, self.unique
        if c_write(self.fd, self.out, header.len) < 0:
            self.error = errno
            self.reply = PyBytes_FromStringAndSize(self.out + OUT_SIZE, body)
        return True

    cpdef bint data(self, bytes body) except -1:
        cdef fuse_out_header *header = <fuse_out_header *>self.out
        cdef iovec parts[2]
        parts[0].iov_base, parts[0].iov_len = self.out, OUT_SIZE
        parts[1].iov_base, parts[1].iov_len = PyBytes_AS_STRING(body), len(body)
        header.len, header.error, header.unique = <uint32_t>(OUT_SIZE + len(body)), 0, self.unique
        if writev(self.fd, parts, 2) < 0:
            self.error = errno
            self.reply = body
        return True

    cpdef bint done(self) except -1:
        return self.send(0, 0)

    cpdef bint refuse(self, int number) except -1:
        return self.send(number, 0)

    cpdef bint attributes(self, uint64_t nodeid, Stat st, uint64_t valid_s, uint32_t valid_ns) except -1:
        cdef fuse_attr_out *body = <fuse_attr_out *>(self.out + OUT_SIZE)
        memset(body, 0, sizeof(fuse_attr_out))
        body.attr_valid, body.attr_valid_nsec = valid_s, valid_ns
        put_attributes(&body.attr, nodeid, st)
        return self.send(0, sizeof(fuse_attr_out))

    cpdef bint entry(
        self, uint64_t nodeid, uint64_t generation, Stat st,
        uint64_t entry_s, uint32_t entry_ns, uint64_t attr_s, uint32_t attr_ns,
    ) except -1:
        self.put_entry(nodeid, generation, st, entry_s, entry_ns, attr_s, attr_ns)
        return self.send(0, sizeof(fuse_entry_out))

    cpdef bint no_entry(self, uint64_t entry_s, uint32_t entry_ns) except -1:
        cdef fuse_entry_out *body = <fuse_entry_out *>(self.out + OUT_SIZE)
        memset(body, 0, sizeof(fuse_entry_out))
        body.entry_valid, body.entry_valid_nsec = entry_s, entry_ns
        return self.send(0, sizeof(fuse_entry_out))

    cpdef bint opened(self, uint64_t fh, uint32_t flags, int backing_id) except -1:
        self.put_open(self.out + OUT_SIZE, fh, flags, backing_id)
        return self.send(0, sizeof(open_out))

    cpdef bint created(
        self, uint64_t nodeid, uint64_t generation, Stat st,
        uint64_t entry_s, uint32_t entry_ns, uint64_t attr_s, uint32_t attr_ns,
        uint64_t fh, uint32_t flags, int backing_id,
    ) except -1:
        self.put_entry(nodeid, generation, st, entry_s, entry_ns, attr_s, attr_ns)
        self.put_open(self.out + OUT_SIZE + sizeof(fuse_entry_out), fh, flags, backing_id)
        return self.send(0, sizeof(fuse_entry_out) + sizeof(open_out))

    cdef void put_entry(
        self, uint64_t nodeid, uint64_t generation, Stat st,
        uint64_t entry_s, uint32_t entry_ns, uint64_t attr_s, uint32_t attr_ns,
    ) noexcept:
        cdef fuse_entry_out *body = <fuse_entry_out *>(self.out + OUT_SIZE)
        body.nodeid, body.generation = nodeid, generation
        body.entry_valid, body.entry_valid_nsec = entry_s, entry_ns
        body.attr_valid, body.attr_valid_nsec = attr_s, attr_ns
        put_attributes(&body.attr, nodeid, st)

    cdef void put_open(self, char *at, uint64_t fh, uint32_t flags, int backing_id) noexcept:
        cdef open_out *body = <open_out *>at
        body.fh, body.open_flags, body.backing_id = fh, flags, backing_id

    cpdef bint attribute(self, object where, bytes name, size_t size) except -1:
        cdef PyThreadState *state
        cdef ssize_t length
        cdef int fd
        cdef const char *path
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef char *value = self.out + OUT_SIZE
        cdef size_t room = min(size, <size_t>(REPLY_SIZE - OUT_SIZE))
        if isinstance(where, bytes):
            path = PyBytes_AS_STRING(where)
            state = leave()
            length = c_getxattr(path, text, value, room)
        else:
            fd = where
            state = leave()
            length = c_fgetxattr(fd, text, value, room)
        back(state)
        if length < 0:
            return self.send(EOPNOTSUPP if errno == ENOSYS else errno or EIO, 0)
        if not size:
            (<uint32_t *>value)[0] = <uint32_t>length
            (<uint32_t *>value)[1] = 0
            return self.send(0, 8)
        return self.send(0, length)
