cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pinfs.core.files cimport Files
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodefds cimport InodeDescriptors
from pinfs.linux.calls cimport Stat, close_fd, open_at, stat_at, stat_fd, stat_of

cdef uint64_t FOREIGN_IDS
cdef uint32_t O_NOFOLLOW, O_PATH, O_PATH_NOFOLLOW, AT_ONCE, KIND_BITS

cdef class InodeTable:
    cdef public uint64_t device
    cdef public object first_spare, sealed, recorder, taken_over_ns, known, on_forgotten, on_dropped, exports
    cdef public Inode root
    cdef public dict by_id
    cdef public InodeDescriptors descriptors
    cdef uint64_t _root_ino
    cdef bint _has_our_clock
    cdef Files _pinned
    cdef object _next_foreign, _closable
    cdef set _reserved_inos
    cdef dict _foreign
    cdef Stat _st

    cpdef Inode find(self, Stat st)
    @cython.locals(inode=Inode)
    cpdef Inode behind(self, tuple name, Stat st)
    @cython.locals(inode=Inode)
    cpdef Inode intern(self, Inode parent, bytes name, Stat st)
    @cython.locals(inode=Inode)
    cpdef object key_of(self, Stat st)
    cpdef Inode add(self, Stat st)
    @cython.locals(fd=int)
    cpdef bint _is_same(self, Inode inode, Stat st, tuple name) except -1
    @cython.locals(st=Stat, error=int)
    cpdef bint _is_open_as(self, Inode inode, int fd) except -1
    cpdef prepare_close(self, Inode inode, bint may_be_cached)
    cdef bint _is_found(self, Inode inode, int fd, Stat st) except -1
    @cython.locals(old_parent=Inode)
    cpdef add_name(self, Inode inode, Inode parent, bytes name, uint64_t nlink)
    @cython.locals(links=set)
    cdef _add_link(self, Inode inode, Inode parent, bytes name)
    cdef _leave(self, Inode parent)
    @cython.locals(fd=int, error=int, inode=Inode)
    cpdef Inode hold_for_unlink(self, Inode parent, bytes name, Stat st=*)
    cpdef keep_reachable(self, Inode inode, Inode parent, bytes name)
    cpdef keep_for_the_next(self, Inode inode, Inode parent, bytes name)
    cdef bint _only_name(self, Inode inode, Inode parent, bytes name) except -1
    @cython.locals(other=tuple)
    cpdef drop_name(self, Inode inode, Inode parent, bytes name)
    @cython.locals(target=Inode)
    cpdef move(self, Inode inode, tuple old, tuple new)
    cpdef looked_up(self, Inode inode, uint64_t unique=*)
    @cython.locals(inode=Inode)
    cpdef forget(self, object nodeid, int64_t nlookup)
    @cython.locals(pending=list)
    cpdef drop_if_unreferenced(self, Inode inode)
    @cython.locals(directory=Inode, directories=list)
    cdef list _drop(self, Inode inode)
    @cython.locals(inode=Inode)
    cpdef drop_id_if_unreferenced(self, object nodeid)
    @cython.locals(unopened=list, parent=Inode)
    cpdef int fd(self, Inode inode) except -2
    @cython.locals(fd=int)
    cdef _open_descriptor(self, Inode inode)
    @cython.locals(fd=int, parent=Inode, name=bytes)
    cpdef int open(self, Inode inode, uint32_t flags) except -2
    @cython.locals(error=int)
    cpdef int64_t size(self, Inode inode) except -2
    cpdef bint stat_into(self, Inode inode, Stat st) except -1
    @cython.locals(parent=Inode, name=bytes)
    cdef bint _is_at_first_name(self, Inode inode, Stat st) except -1
    cpdef bint leads_to(self, Inode inode) except -1
    cpdef object handle(self, Inode inode)
    cpdef int any_fd(self, Inode inode) except -2
    cpdef bytes magic_path(self, Inode inode)
