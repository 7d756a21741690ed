from libc.stdint cimport int64_t, uint32_t, uint64_t

from pinfs.linux.calls cimport Stat, clock

cdef enum:
    REPLY_SIZE = 16 + 65536  # a header, and the longest attribute (XATTR_SIZE_MAX)

cdef class Channel:
    cdef public int fd, error
    cdef public uint32_t opcode, uid, gid, pid, umask
    cdef public uint64_t unique, nodeid
    cdef public Py_ssize_t size
    cdef public bytearray buffer
    cdef public bytes reply
    cdef double _busy_poll_s
    cdef int _credit, _taken
    cdef bint _blocks
    cdef void *_waker
    cdef char *raw
    cdef Py_ssize_t room
    cdef char out[REPLY_SIZE]

    cpdef use(self, bytearray buffer)
    cdef bint _may_spin(self) noexcept
    cpdef int take(self, int wait_ms) noexcept
    cdef ssize_t _read_within(self, int wait_ms) noexcept
    cdef void _begin_blocking(self) noexcept
    cdef void _end_blocking(self) noexcept
    cpdef settle(self)
    cpdef uint32_t u32(self, Py_ssize_t at) noexcept
    cpdef uint64_t u64(self, Py_ssize_t at) noexcept
    cpdef int64_t i64(self, Py_ssize_t at) noexcept
    cpdef bytes name(self, Py_ssize_t at)
    cpdef tuple two(self, Py_ssize_t at)
    cpdef tuple name_and_value(self, Py_ssize_t at, Py_ssize_t size)
    cpdef object view(self, Py_ssize_t at)
    cdef bint send(self, int number, size_t body) except -1
    cdef void put_entry(
        self, uint64_t nodeid, uint64_t generation, Stat st,
        uint64_t entry_s, uint32_t entry_ns, uint64_t attr_s, uint32_t attr_ns,
    ) noexcept
    cdef void put_open(self, char *at, uint64_t fh, uint32_t flags, int backing_id) noexcept
    cpdef bint data(self, bytes body) except -1
    cpdef bint done(self) except -1
    cpdef bint refuse(self, int number) except -1
    cpdef bint attributes(self, uint64_t nodeid, Stat st, uint64_t valid_s, uint32_t valid_ns) except -1
    cpdef bint entry(
        self, uint64_t nodeid, uint64_t generation, Stat st,
        uint64_t entry_s, uint32_t entry_ns, uint64_t attr_s, uint32_t attr_ns,
    ) except -1
    cpdef bint no_entry(self, uint64_t entry_s, uint32_t entry_ns) except -1
    cpdef bint opened(self, uint64_t fh, uint32_t flags, int backing_id) except -1
    cpdef bint created(
        self, uint64_t nodeid, uint64_t generation, Stat st,
        uint64_t entry_s, uint32_t entry_ns, uint64_t attr_s, uint32_t attr_ns,
        uint64_t fh, uint32_t flags, int backing_id,
    ) except -1
    cpdef bint attribute(self, object where, bytes name, size_t size) except -1
