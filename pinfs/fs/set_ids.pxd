cimport cython

from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.seal cimport Seal
from pinfs.linux.calls cimport Stat, set_mode

cdef long S_ISGID, _SET_IDS

cdef class SetIds:
    cdef InodeTable _inodes
    cdef Seal _seal
    cdef object _privileges
    cdef Stat _st

    cpdef chmod(self, Inode inode, long mode)
    @cython.locals(st=Stat)
    cpdef bint has_set_ids(self, Inode inode) except -1
    cpdef object keeping(self, Inode inode)
    cpdef object keeping_from(self, bytes attribute)
    cpdef object keeping_without(self, bytes attribute, Inode inode, object caller)
