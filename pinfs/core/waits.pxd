cimport cython

cdef class Obstacle:
    cdef public dict watchers

cdef class Waiter(Obstacle):
    cdef public Obstacle watching

    cpdef watch(self, Obstacle obstacle)
    @cython.locals(watching=Obstacle)
    cpdef unwatch(self)
