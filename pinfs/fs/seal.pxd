cimport cython

from pinfs.core.files cimport Files
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable

cdef class _Sealed:
    cdef public Inode inode
    cdef public bint is_set, is_own
    cdef public long lifters
    cdef public object listed

cdef class Seal:
    cdef public str unavailable_because
    cdef public long count
    cdef public object flags
    cdef public dict files
    cdef Files _pinned
    cdef InodeTable _inodes
    cdef object _policies, _became_idle, _list
    cdef dict _idle
    cdef set _reported

    @cython.locals(record=_Sealed)
    cpdef before_pin(self, Inode inode)
    cpdef unpinned(self, object nodeid)
    cpdef left_by_pins(self, object nodeid)
    @cython.locals(record=_Sealed)
    cpdef object lifted(self, Inode inode)
    cpdef lift_for(self, _Sealed record)
    cpdef put_back(self, _Sealed record)
    cpdef bint is_sealed(self, object nodeid) except -1
    cpdef bint hides_append(self, Inode inode) except -1

cdef class _Lifted:
    cdef Seal _seal
    cdef _Sealed _record
