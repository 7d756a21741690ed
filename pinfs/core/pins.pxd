from pinfs.core.waits cimport Obstacle

cdef class PinSpec:
    cdef readonly object start, length, end, mode, signal, eventfd
    cdef readonly bint dirty
    cdef readonly str note

    cpdef check(self, object size)

cdef class PinRequest:
    cdef readonly object inode, owner, process, uid, proxy_uid
    cdef readonly bytes name
    cdef readonly PinSpec spec

cdef class Pin:
    cdef readonly object id, inode, owner, own_key
    cdef public object process, uid, proxy_uid, charged
    cdef public Break breaking
    cdef readonly bytes name
    cdef public PinSpec spec
    cdef readonly double since

cdef class Break(Obstacle):
    cdef readonly Pin pin
    cdef public object policy, deadline, op, start, end, seq, host
    cdef public double since
    cdef public bint killed
