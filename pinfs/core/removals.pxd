from pinfs.core.waits cimport Waiter

cdef class Reservation(Waiter):
    cdef public object inode, start, end
    cdef public long long order

cdef class Removal(Reservation):
    cdef public object request, policy, wake, turn, why, pinned_at
    cdef public object errno "errno_"
    cdef public bint exempt

cdef class Orphan(Reservation):
    cdef public object process, deadline
