from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.seal cimport Seal
from pinfs.linux.calls cimport set_mode

cdef class SetIds:
    cdef InodeTable _inodes
    cdef Seal _seal
    cdef object _privileges

    cpdef chmod(self, Inode inode, long mode)
    cpdef object keeping(self, Inode inode)
    cpdef object keeping_from(self, bytes attribute)
    cpdef object keeping_without(self, bytes attribute, Inode inode, object caller)
