cimport cython
from libc.stdint cimport int64_t

from pinfs.linux.calls cimport clock, is_readable

cdef class Process:
    cdef object __weakref__
    cdef public object id
    cdef public int pid, pidfd
    cdef public long holds
    cdef object _last, _close
    cdef double _alive_until

    cpdef bint has_thread(self, int64_t tid) except -1
    @cython.locals(now=double)
    cpdef bint has_caller(self, int64_t tid) except -1
