cimport cython


from pinfs.enforce.processes cimport Process

cdef class Holders:
    cdef public object on_death, on_forgotten, counters, namespace
    cdef object _remembered, _first_spare, _epoll, _all
    cdef public dict _holding, _held, _watched, _idle, _recent

    @cython.locals(process=Process)
    cpdef Process process_of(self, object tid)
    @cython.locals(process=Process)
    cpdef Process caller(self, object tid)
    cpdef hold(self, Process process)
    cdef _watch(self, Process process)
    @cython.locals(process=Process)
    cpdef drop(self, object process_id)
