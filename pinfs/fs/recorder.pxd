cimport cython
from libc.stdint cimport int64_t, uint64_t

from pinfs.core.pins cimport Pin, PinSpec
from pinfs.fs.handles cimport Handle
from pinfs.fs.inode cimport Inode
from pinfs.fs.openfile cimport OpenFile
from pinfs.journal.slots cimport Slots

cdef uint64_t BACKING_ID_WORD, COUNTED, COUNTED_BY, FIRST_COUNTED, LAST_HANDLE, LOOKUPS_WORD, MAX_COUNTED, WORD_BITS
cdef int _HANDLE, _INODE, _PIN

cdef class Recorder:
    cdef public Slots slots
    cdef public object store
    cdef public str broken_because
    cdef object _device, _is_pinned, _directories
    cdef public double to_monotonic_s
    cdef dict _pins, _breaks, _eventfds, _links, _stored
    cdef list _renaming

    cpdef uint64_t take(self) except? 0
    cpdef uint64_t put(self, int kind, bytes body, uint64_t old=*) except? 0
    @cython.locals(parent=Inode, name=bytes)
    cpdef inode(self, Inode inode)
    cpdef lookups(self, Inode inode)
    @cython.locals(count=uint64_t, at=uint64_t, words=uint64_t[::1])
    cpdef looked_up(self, Inode inode, uint64_t unique)
    cpdef backing_id(self, Inode inode, uint64_t backing_id)
    cpdef renamed(self, Inode inode)
    @cython.locals(file=OpenFile)
    cpdef nameless(self, Inode inode)
    cpdef renaming(self, Inode inode, Inode parent, bytes name)
    cpdef rename_ended(self)
    cpdef inode_dropped(self, Inode inode)
    @cython.locals(inode=Inode, slots=Slots, number=uint64_t, slot=uint64_t, at=uint64_t, word=uint64_t, words=uint64_t[::1])
    cpdef handle(self, Handle handle, object caller)
    cpdef handle_closed(self, Handle handle)
    @cython.locals(spec=PinSpec, name=bytes)
    cpdef pin(self, Pin pin, object caller)
    @cython.locals(slot=uint64_t)
    cpdef pin_ended(self, Pin pin, object unique)
