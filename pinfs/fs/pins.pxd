cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pinfs.core.files cimport Files
from pinfs.core.pins cimport Pin, PinRequest, PinSpec
from pinfs.core.table cimport PinTable
from pinfs.enforce.guard cimport Guard
from pinfs.enforce.holders cimport Holders
from pinfs.enforce.processes cimport Process
from pinfs.fs.backing cimport Backing
from pinfs.fs.handles cimport HandleTable
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.seal cimport Seal

cdef class PinVerbs:
    cdef public HandleTable handles
    cdef public object eventfds, commands
    cdef public object hosts, recorder, released_before
    cdef Guard _guard
    cdef object _book, _breaking_of, _released_by, _pid_namespace, _echoes
    cdef PinTable _table
    cdef Holders _holders
    cdef InodeTable _inodes
    cdef Backing _backing
    cdef Seal _seal
    cdef set _admins
    cdef object _texts

    @cython.locals(name=bytes, process=Process, old=Pin, spec=PinSpec)
    cpdef bint set_at_once(self, Inode inode, bytes attribute, bytes value, uint32_t flags, object ctx) except -1
    @cython.locals(old=Pin)
    cdef Pin _replaced(self, Inode inode, Process process, bytes name, uint32_t flags)
    cdef PinSpec _with_eventfd(self, PinSpec spec, object number, object caller, object uid)
    @cython.locals(pin=Pin)
    cdef Pin _register(self, PinRequest request, Inode inode, Process process, Pin old, object ctx, object number=*)
    @cython.locals(process=Process)
    cdef Process _caller(self, object ctx)
    @cython.locals(name=bytes, pin=Pin)
    cpdef bint remove_at_once(self, Inode inode, bytes attribute, object ctx) except -1
    @cython.locals(process=Process, pin=Pin)
    cdef Pin _find(self, Inode inode, bytes name, object ctx)
    cdef _let_go(self, Pin pin, object ctx, bint revoke=*)
    @cython.locals(pin=Pin)
    cpdef bytes look(self, Inode inode, bytes attribute, object ctx, object size)
    @cython.locals(name=bytes, pin=Pin)
    cpdef bytes release_at_once(self, Inode inode, bytes attribute, object ctx, uint32_t size)
    cpdef on_end(self, Pin pin)
