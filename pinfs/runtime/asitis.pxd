cdef class AsItIs:
    pass
