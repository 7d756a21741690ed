cimport cython

from pinfs.core.book cimport PinBook
from pinfs.core.events cimport BookEvent
from pinfs.core.pins cimport Pin, PinRequest, PinSpec
from pinfs.core.removals cimport Removal
from pinfs.runtime.clock cimport Clock

cdef class Guard:
    cdef public PinBook book
    cdef public Clock clock
    cdef public object on_handle_event, mount_device, record, cuts, hosts
    cdef object _holders, _eventfds, _policies, _events, _stats, _sooner, _sleeps_until
    cdef list _reap_waiters

    cpdef bint is_free(self, object inode, object start, object end) except -1
    cpdef bint is_untouched(self, object inode, object start, object end) except -1
    cpdef bint must_ask(self, object inode) except -1
    cpdef Pin pin(self, PinRequest request, object size)
    cpdef release(self, Pin pin)
    cpdef Removal judge_at_once(self, object call)
    cdef object _request(self, object call, object process)
    @cython.locals(removal=Removal, pins=list)
    cdef Removal _begin(self, object call)
    @cython.locals(pin=Pin)
    cdef _tell(self, BookEvent event)
    @cython.locals(pin=Pin, removal=Removal)
    cdef _act(self, BookEvent event)
    @cython.locals(spec=PinSpec)
    cdef _notify(self, Pin pin)
