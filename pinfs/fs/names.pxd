cimport cython

from pinfs.fs.backing cimport Backing
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodefds cimport InodeDescriptors
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.seal cimport Seal
from pinfs.linux.calls cimport rename_at, unlink_at

cdef class Names:
    cdef InodeTable _inodes
    cdef Backing _backing
    cdef Seal _seal
    cdef InodeDescriptors _descriptors

    @cython.locals(directory_fd=int)
    cpdef link(self, Inode inode, Inode directory, bytes name)
    cpdef unlink(self, Inode victim, Inode directory, bytes name)
    cpdef unlink_unknown(self, Inode directory, bytes name)
    cpdef rename(self, tuple old, tuple new, long flags, Inode moved, Inode victim)
    cdef _unlink(self, Inode victim, Inode directory, bytes name)
    cdef _rename(self, tuple old, tuple new, long flags, Inode moved, Inode victim)
    @cython.locals(directory_fd=int, old_fd=int)
    cdef _rename_bare(self, tuple old, tuple new, long flags, Inode moved, Inode victim)
    cpdef renamed(self, tuple old, tuple new, long flags, Inode moved, Inode victim)
    cpdef lose(self, Inode inode, Inode directory, bytes name)
