cimport cython

from pinfs.core.breaks cimport Breaks
from pinfs.core.deadlines cimport Deadlines
from pinfs.core.events cimport BookEvent
from pinfs.core.files cimport Files, FileState
from pinfs.core.pins cimport Break, Pin, PinRequest, PinSpec
from pinfs.core.ranges cimport RangeTree
from pinfs.core.removals cimport Orphan, Removal, Reservation
from pinfs.core.reservations cimport Reservations
from pinfs.core.silence cimport SilentHolders
from pinfs.core.slices cimport Notifying
from pinfs.core.table cimport PinTable
from pinfs.core.waits cimport Obstacle, Waiter

cdef class PinBook:
    cdef public Files files
    cdef public Deadlines deadlines
    cdef public Reservations reservations
    cdef public Breaks breaks
    cdef public Notifying notifying
    cdef public SilentHolders silent
    cdef public object withdrawals, reaping
    cdef public object is_dead, ended, on_end
    cdef public PinTable table
    cdef public bint closing, subscribed
    cdef object _emit, _slices
    cdef dict _waiting
    cdef Py_ssize_t _few

    @cython.locals(file=FileState)
    cpdef bint touches(self, object inode, object start, object end) except -1
    @cython.locals(table=PinTable, old=Pin, pin=Pin, file=FileState, spec=PinSpec)
    cpdef Pin pin(self, PinRequest request, object size, double now)
    cpdef release(self, Pin pin, double now, str by=*)
    @cython.locals(removal=Removal)
    cpdef Removal begin(self, object request, object policy, double now)
    cpdef finish(self, Removal removal, double now)
    @cython.locals(file=FileState, few=list, refusing=Pin, own=Pin)
    cdef bint _is_refused_at_once(self, Removal removal, double now) except -1
    cdef Pin _denying(self, Removal removal, FileState file, list few)
    cdef Pin _own_in_the_way(self, Removal removal, FileState file, list few)
    cdef bint _is_one_too_many(self, Removal removal, FileState file, double now) except -1
    @cython.locals(file=FileState, earlier=Removal)
    cdef object _obstacle(self, Removal removal)
    @cython.locals(breaking=Break)
    cdef _advance(self, Removal removal, double now)
    cdef _ready(self, Removal removal, double now)
    @cython.locals(waiter=Waiter)
    cdef _look_again(self, dict watchers, double now)
    @cython.locals(file=FileState, tree=RangeTree, pin=Pin)
    cdef Break _first_breaking(self, Reservation waiter, double now)
    @cython.locals(breaking=Break)
    cdef Break _begin_break(self, Pin pin, Removal removal, double now)
    @cython.locals(breaking=Break)
    cdef _end(self, Pin pin, str kind, double now, str by)

cdef object _in_the_way(Removal removal, FileState file, list few)
