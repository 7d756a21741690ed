from pinfs.linux.calls cimport clock

cdef class Clock:
    cdef bint _follows_system
    cdef double _ahead_s

    cpdef double now(self) except? -1
