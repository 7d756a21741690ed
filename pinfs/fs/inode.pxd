from libc.stdint cimport int64_t, uint32_t, uint64_t

from pinfs.fs.openfile cimport OpenFile

cdef class Inode:
    cdef public uint64_t nodeid
    cdef public object key
    cdef public uint32_t kind
    cdef public int64_t lookups, slot, children
    cdef public Inode parent
    cdef public bytes name
    cdef public set links
    cdef public int fd
    cdef public OpenFile file
    cdef public bytes life
    cdef public int64_t ctime_ns, data_ctime_ns
