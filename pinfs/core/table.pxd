cimport cython

from pinfs.core.files cimport Files, FileState
from pinfs.core.pins cimport Pin, PinRequest

cdef class Usage:
    cdef public object pins, bytes

cdef class PinTable:
    cdef public object limits
    cdef public dict by_id, by_owner, usage
    cdef Files _files
    cdef object _on_limit
    cdef dict _by_proxy, _of_handles
    cdef public object _last_id

    @cython.locals(owned=dict)
    cpdef Pin find(self, object inode, object owner, object name)
    @cython.locals(pin=Pin)
    cpdef Pin insert(self, PinRequest request, object charge, double now)
    cpdef replace(self, Pin pin, PinRequest request, object charge, double now)
    @cython.locals(file=FileState, usage=Usage)
    cpdef remove(self, Pin pin)
    @cython.locals(owned=dict, usage=Usage)
    cdef _put(self, Pin pin)
    @cython.locals(usage=Usage)
    cdef _check_limits(self, object uid, object charge, Pin old, double now)
    cdef _refuse(self, str limit, double now)

@cython.locals(pins=dict)
cpdef discard(dict index, object key, object pin)
