cimport cython

cdef class _Node:
    cdef public object start, end, max_end, key, value
    cdef public double priority
    cdef public _Node left, right

    @cython.locals(left=_Node, right=_Node)
    cpdef object measure(self)

cdef class RangeTree:
    cdef object _random
    cdef _Node _root
    cdef Py_ssize_t _size

    @cython.locals(new=_Node, parent=_Node, node=_Node, goes_left=bint)
    cpdef insert(self, object start, object end, object key, object value)
    @cython.locals(root=_Node, node=_Node, goes_left=bint, path=list)
    cpdef remove(self, object start, object key)
    @cython.locals(root=_Node)
    cpdef list some(self, object start, object end, Py_ssize_t count)
    @cython.locals(node=_Node, left=_Node)
    cpdef object first_overlap(self, object start, object end)
    cpdef bint any_overlap(self, object start, object end) except -1
    cdef _hang(self, _Node parent, bint left, _Node node)

cdef tuple _split(_Node tree, object start, object key)
cdef _Node _merge(_Node low, _Node high)
@cython.locals(node=_Node)
cdef _measure_up(list path)
