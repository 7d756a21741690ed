from libc.stdint cimport int64_t, uint32_t, uint64_t

from pinfs.fs.inode cimport Inode

cdef class Handle:
    cdef object __weakref__
    cdef public Inode inode
    cdef public uint32_t flags
    cdef public uint64_t number
    cdef public int64_t slot

cdef class ByteHandle(Handle):
    pass

cdef class FileHandle(ByteHandle):
    cdef public list wakes

cdef class HandleTable:
    cdef public object recorder, streams
    cdef dict _handles
    cdef public uint64_t last

    cpdef add(self, Handle handle, object caller)
    cpdef Handle find(self, object fh)
    cpdef Handle pop(self, object fh)
