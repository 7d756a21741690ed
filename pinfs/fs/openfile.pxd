cdef class OpenFile:
    cdef public int any_fd, reader, writer
    cdef public long opens
    cdef public object backing_id

    cpdef read_by(self, int fd)
    cpdef write_by(self, int fd)
