from libc.stdint cimport uint32_t

from pinfs.fs.backing cimport Backing
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.seal cimport Seal
from pinfs.fs.set_ids cimport SetIds
from pinfs.linux.calls cimport remove_attribute, set_attribute, set_times

cdef class Attributes:
    cdef InodeTable _inodes
    cdef Backing _backing
    cdef Seal _seal
    cdef SetIds _set_ids

    cpdef set_times(self, Inode inode, object atime_ns, object mtime_ns)
    cdef _set_times(self, Inode inode, object atime_ns, object mtime_ns)
    cpdef set_extended(self, Inode inode, bytes name, bytes value, uint32_t flags)
    cpdef remove_extended(self, Inode inode, bytes name, object caller)
