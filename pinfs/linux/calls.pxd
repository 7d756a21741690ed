from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "<sys/stat.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    struct c_stat "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint64_t st_nlink
        uint32_t st_mode
        uint32_t st_uid
        uint32_t st_gid
        uint64_t st_rdev
        int64_t st_size
        int64_t st_blksize
        int64_t st_blocks
        timespec st_atim
        timespec st_mtim
        timespec st_ctim

cdef class Stat:
    cdef public uint64_t st_dev, st_ino, st_nlink
    cdef public uint32_t st_mode, st_uid, st_gid
    cdef public int64_t st_size, st_ctime_ns
    cdef c_stat raw
    cdef void known(self) noexcept

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass

cdef PyThreadState *leave() noexcept
cdef void back(PyThreadState *state) noexcept

cpdef double clock() noexcept
cpdef Stat stat_of(object result)
cpdef int stat_at(int directory_fd, bytes name, Stat st) noexcept
cpdef int stat_fd(int fd, Stat st) noexcept
cpdef bint is_readable(int fd) noexcept
cpdef uint64_t attributes_of(int fd) except? 0xFFFFFFFFFFFFFFFF
cpdef bint queue_signal(int pidfd, int signo, uint64_t value) noexcept
cpdef int read_and_signal(size_t context, int empty_fd, int eventfd) except -1
cpdef int close_fd(int fd) except -1
cpdef int open_at(int directory_fd, bytes name, int flags, unsigned int mode) except -1
cpdef int unlink_at(int directory_fd, bytes name) except -1
cpdef int rmdir_at(int directory_fd, bytes name) except -1
cpdef int mkdir_at(int directory_fd, bytes name, unsigned int mode) except -1
cpdef int rename_at(int old_fd, bytes old, int new_fd, bytes new, unsigned int flags) except -1
cpdef set_fs_ids(unsigned int uid, unsigned int gid)
cpdef int set_mode(int fd, bint is_path, unsigned int mode) except -1
cpdef int set_times(int fd, bint is_path, object atime_ns, object mtime_ns) except -1
cpdef int set_attribute(object where, bytes name, bytes value, int flags) except -1
cpdef int remove_attribute(object where, bytes name) except -1
cpdef int open_backing(int connection_fd, int fd) except -1
cpdef int close_backing(int connection_fd, int backing_id) except -1
