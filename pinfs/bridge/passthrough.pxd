from pinfs.linux.calls cimport close_backing, open_backing

cdef class Passthrough:
    cdef public str unavailable_because
    cdef public long registered
    cdef int _connection
    cdef set _reported

    cpdef int open(self, int fd) except -2
    cpdef close(self, int backing_id)
    cpdef int _open(self, int fd) except -2
    cpdef _close(self, int backing_id)
