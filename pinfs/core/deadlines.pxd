cdef class Deadlines:
    cdef public object on_set
    cdef object _slice_size, _count
    cdef list _heap
    cdef Py_ssize_t _stale

    cpdef set(self, object item, double deadline)
    cpdef drop(self, object item)
