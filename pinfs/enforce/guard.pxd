from pinfs.core.book cimport PinBook
from pinfs.core.pins cimport Pin, PinRequest

cdef class Guard:
    cdef public PinBook book
    cdef public object on_handle_event, mount_device, record, cuts, hosts
    cdef object _holders, _eventfds, _policies, _events, _stats, _sooner, _sleeps_until
    cdef list _reap_waiters

    cpdef bint is_free(self, object inode, object start, object end) except -1
    cpdef bint is_untouched(self, object inode, object start, object end) except -1
    cdef bint _must_ask(self, object inode) except -1
    cpdef Pin pin(self, PinRequest request, object size)
    cpdef release(self, Pin pin)
