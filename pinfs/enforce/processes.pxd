from libc.stdint cimport int64_t

cdef class Process:
    cdef object __weakref__
    cdef public object id
    cdef public int pid, pidfd
    cdef public long holds
    cdef object _last, _close

    cpdef bint has_thread(self, int64_t tid) except -1
