from libc.stdint cimport int64_t, uint32_t

from pinfs.fs.backing cimport Backing
from pinfs.fs.handles cimport FileHandle, HandleTable
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.linux.calls cimport Stat, open_at

cimport cython

cdef uint32_t AT_ONCE, O_ACCMODE, O_RDWR, S_IFREG, _CREATES, _NOT_AT_CREATION, KIND_BITS

cdef class Opens:
    cdef InodeTable _inodes
    cdef Backing _backing
    cdef HandleTable _handles
    cdef object _uncached
    cdef int64_t _attr_timeout_ns
    cdef bint _is_shared

    @cython.locals(handle=FileHandle, backing_id=int)
    cpdef FileHandle handle(self, Inode inode, uint32_t flags, object caller, bint with_entry)
    @cython.locals(known=int64_t)
    cpdef long cache_flags(self, Inode inode, bint with_entry, object st) except -1
    @cython.locals(directory_fd=int)
    cpdef int make(self, Inode directory, bytes name, uint32_t mode, uint32_t flags, object caller) except -2
    @cython.locals(inode=Inode)
    cpdef Inode made(self, Inode directory, bytes name, uint32_t flags, int fd, Stat st)
    cdef int _open_sealed(self, object failure, tuple name, uint32_t flags, uint32_t mode) except -2
    cpdef abandon(self, Inode inode)
