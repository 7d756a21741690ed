cimport cython
from libc.stdint cimport uint64_t

cdef uint64_t _SLOT_BITS, _WORD_BITS

cdef class Slots:
    cdef public object words
    cdef uint64_t[::1] view
    cdef object _fd, _map
    cdef uint64_t _max_slots, _sequence, _loaded
    cdef list _free

    @cython.locals(slot=uint64_t, at=uint64_t)
    cpdef uint64_t put(self, int kind, bytes body) except? 0
    cpdef uint64_t take(self) except? 0
    @cython.locals(sequence=uint64_t)
    cpdef commit(self, uint64_t slot, uint64_t kind)
    cdef uint64_t _more(self, int kind, bytes body) except? 0
    @cython.locals(word=uint64_t, words=uint64_t[::1], chain=uint64_t)
    cpdef free(self, uint64_t slot)
    @cython.locals(new=uint64_t)
    cpdef uint64_t replace(self, uint64_t slot, int kind, bytes body) except? 0
    cpdef _free_chain(self, uint64_t slot)
    @cython.locals(words="const uint64_t[::1]", used=uint64_t, sequence=uint64_t, slot=uint64_t, word=uint64_t, commit=uint64_t,
                   kind=uint64_t, slots=dict, free=list, left=list, chained=list, heads=list)
    cpdef load(self, int without=*)
    @cython.locals(words="const uint64_t[::1]", used=uint64_t, slot=uint64_t, at=uint64_t, commit=uint64_t, value=uint64_t,
                   last=uint64_t, count=uint64_t, groups=dict)
    cpdef tuple values(self, int kind, int word)
    @cython.locals(words="const uint64_t[::1]", used=uint64_t, slot=uint64_t, at=uint64_t, commit=uint64_t, value=uint64_t,
                   last=uint64_t, end=uint64_t, loaded=uint64_t, group=list)
    cpdef uint64_t collect(self, int kind, int word, dict groups, uint64_t first) except? 0
    @cython.locals(number=Py_ssize_t, here=uint64_t, before=uint64_t)
    cpdef put_in_order(self, list group)
    @cython.locals(number=Py_ssize_t, here=uint64_t, before=uint64_t)
    cpdef _free_older(self, list group)
