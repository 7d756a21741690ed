cdef class SilentHolders:
    cdef public object on_change
    cdef dict _until

    cpdef bint has(self, object owner, double now) except -1
