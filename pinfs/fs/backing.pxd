cimport cython
from libc.stdint cimport uint32_t

from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.openfile cimport OpenFile
from pinfs.fs.seal cimport Seal

cdef uint32_t O_ACCMODE, O_RDONLY, O_WRONLY

cdef class Backing

cdef class _Writing:
    cdef int _fd
    cdef Backing _backing
    cdef Inode _inode

cdef class _AsCaller:
    cdef uint32_t _uid, _gid

cdef class Backing:
    cdef public Seal seal
    cdef public object passthrough, privileges, evictions, threads
    cdef public long open_files
    cdef public bint in_memory
    cdef bint _source_may_wait, _changes_owner
    cdef InodeTable _inodes
    cdef uint32_t _umask
    cdef dict _may_wait, _fallocate_modes, _idle
    cdef long _first_spare, _first_spare_of_holders
    cdef long _idle_files

    @cython.locals(file=OpenFile, access=uint32_t)
    cpdef OpenFile open(self, Inode inode, uint32_t flags)
    @cython.locals(file=OpenFile, access=uint32_t)
    cpdef adopt(self, Inode inode, int fd, uint32_t flags)
    @cython.locals(fd=int)
    cdef int _open_to_keep(self, Inode inode, uint32_t flags) except -2
    cdef _make_room(self)
    cpdef _open_writer(self, Inode inode, OpenFile file, uint32_t flags)
    @cython.locals(file=OpenFile)
    cpdef release(self, Inode inode)
    cpdef close_idle_if_moved(self, Inode inode)
    cpdef close_idle(self, Inode inode)
    cpdef _close_if_idle(self, Inode inode)
    cdef _close(self, Inode inode, OpenFile file)
    @cython.locals(file=OpenFile)
    cpdef long passthrough_id(self, Inode inode) except -1
    cdef _record_backing_id(self, Inode inode, long backing_id)
    cpdef int reader(self, Inode inode) except -2
    cpdef int writer(self, Inode inode) except -2
    cpdef int any_fd(self, Inode inode) except -2
    cpdef bint may_wait(self, Inode inode) except -1
    @cython.locals(uid=uint32_t, gid=uint32_t, umask=uint32_t)
    cpdef object creating_as(self, object ctx)
    cpdef object outliving_name(self, Inode directory, bytes name)
