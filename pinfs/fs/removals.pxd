cimport cython

from pinfs.core.files cimport Files
from pinfs.core.removals cimport Removal
from pinfs.enforce.guard cimport Guard
from pinfs.fs.backing cimport Backing
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.openfile cimport OpenFile
from pinfs.fs.seal cimport Seal
from pinfs.fs.set_ids cimport SetIds
from pinfs.linux.calls cimport attributes_of

cdef class Removals

cdef class JudgedTruncate:
    cdef readonly Inode inode
    cdef Removals _removals
    cdef Removal _removal
    cdef object _size, _caller

    cpdef bint waits(self, object wake) except -1
    @cython.locals(removal=Removal)
    cpdef cut(self)
    cpdef leave(self)

cdef class Removals:
    cdef public object open_writer
    cdef InodeTable _inodes
    cdef Backing _backing
    cdef Guard _guard
    cdef SetIds _set_ids
    cdef Seal _seal
    cdef object _threads
    cdef Files _files

    cpdef bint is_guarded(self, Inode inode) except -1
    cdef bint _is_pinned_here(self, Inode inode) except -1
    @cython.locals(file=OpenFile)
    cpdef bint truncate_at_once(self, Inode inode, object size, object caller) except -1
    @cython.locals(file=OpenFile)
    cpdef cut_open(self, Inode inode, object size, object caller)
    @cython.locals(file=OpenFile)
    cpdef JudgedTruncate judge_truncate(self, Inode inode, object size, object caller)
    cpdef hold_open(self, Inode inode)
    cpdef end(self, Removal removal, Inode inode)
    cpdef _done(self, object caller)
    cpdef bint takes_all(self, Inode victim) except -1
