cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pinfs.bridge.channel cimport Channel
from pinfs.fs.fast cimport FastOperations
from pinfs.fs.handles cimport FileHandle
from pinfs.fs.inode cimport Inode
from pinfs.fs.removals cimport JudgedTruncate
from pinfs.linux.calls cimport clock

cdef uint32_t FATTR_ATIME, FATTR_ATIME_NOW, FATTR_FH, FATTR_MODE, FATTR_MTIME, FATTR_MTIME_NOW, FATTR_SIZE, FATTR_TIMES
cdef uint32_t FOPEN_NOFLUSH, FSYNC_FDATASYNC, OPEN_KILL_SUIDGID, WRITE_KILL_SUIDGID, _CHANGES, _OPCODES, _PASSTHROUGH
cdef uint32_t _TICK_NS
cdef uint64_t _TICK_S
cdef Py_ssize_t IN_SIZE, _RENAME2_IN, _SETXATTR_IN, _WRITE_IN

cdef class Flag:
    cdef public bint yes

cdef class Loop:
    cdef public FastHandlers fast
    cdef public long answered_fast
    cdef Channel _channel
    cdef object _slow, _read_failed, _resumable, _resume
    cdef Flag _woken

    @cython.locals(channel=Channel, woken=Flag, fast=FastHandlers, until=double, wait_ms=int, got=int)
    cpdef bint run(self, int turn_ms) except -1

cdef class _WaitingTruncate:
    cdef FastHandlers _handlers
    cdef JudgedTruncate _truncate

cdef class FastHandlers:
    cdef public Py_ssize_t setxattr_at
    cdef Channel _channel
    cdef FastOperations _ops
    cdef object _exports, _failed, _undelivered, _park
    cdef object _uncached
    cdef uint64_t _entry_s, _attr_s
    cdef uint32_t _entry_ns, _attr_ns, _directory_flags
    cdef list _handlers, _shortest

    @cython.locals(channel=Channel, ops=FastOperations, opcode=uint32_t, answered=bint)
    cpdef bint answer(self) except -1
    @cython.locals(channel=Channel, inode=Inode)
    cpdef bint lookup(self) except -1
    @cython.locals(
        channel=Channel, ops=FastOperations, nodeid=uint64_t, generation=uint64_t, attr_s=uint64_t, attr_ns=uint32_t,
        backing_id=int,
    )
    cdef bint _entry(self, Inode inode, FileHandle handle=*) except -1
    @cython.locals(channel=Channel)
    cpdef bint forget(self) except -1
    @cython.locals(channel=Channel, inode=Inode)
    cpdef bint mkdir(self) except -1
    @cython.locals(channel=Channel, inode=Inode, name=bytes, target=bytes)
    cpdef bint symlink(self) except -1
    @cython.locals(channel=Channel, inode=Inode)
    cpdef bint link(self) except -1
    @cython.locals(channel=Channel)
    cpdef bint unlink(self) except -1
    @cython.locals(channel=Channel)
    cpdef bint rmdir(self) except -1
    cpdef bint rename(self) except -1
    cpdef bint rename2(self) except -1
    @cython.locals(channel=Channel, name=bytes, new_name=bytes)
    cdef bint _rename(self, Py_ssize_t names_at, uint32_t flags) except -1
    @cython.locals(inode=Inode)
    cpdef bint getattr(self) except -1
    @cython.locals(nodeid=uint64_t)
    cdef bint _attributes(self, Inode inode) except -1
    @cython.locals(channel=Channel, ops=FastOperations, valid=uint32_t, inode=Inode)
    cpdef bint setattr(self) except -1
    @cython.locals(channel=Channel, ops=FastOperations, inode=Inode, truncate=JudgedTruncate)
    cdef bint _truncate(self, object size) except -1
    @cython.locals(nodeid=uint64_t)
    cpdef bytes reply_of(self, Inode inode)
    cdef object _time(self, uint32_t is_set, uint32_t is_now, Py_ssize_t seconds_at, Py_ssize_t nanoseconds_at)
    @cython.locals(channel=Channel, handle=FileHandle, backing_id=int, kill_suidgid=bint)
    cpdef bint open(self) except -1
    cdef long _open_flags(self, FileHandle handle, int backing_id, bint with_entry) except -1
    @cython.locals(channel=Channel, handle=FileHandle, kill_suidgid=bint)
    cpdef bint create(self) except -1
    cpdef bint release(self) except -1
    @cython.locals(channel=Channel, data=bytes)
    cpdef bint read(self) except -1
    @cython.locals(channel=Channel, size=uint32_t, written=int64_t)
    cpdef bint write(self) except -1
    cpdef bint statfs(self) except -1
    @cython.locals(channel=Channel)
    cpdef bint fsync(self) except -1
    @cython.locals(fh=uint64_t)
    cpdef bint opendir(self) except -1
    @cython.locals(channel=Channel, at=Py_ssize_t, name=bytes, value=bytes)
    cpdef bint setxattr(self) except -1
    @cython.locals(channel=Channel, name=bytes, size=uint32_t, text=bytes)
    cpdef bint getxattr(self) except -1
    @cython.locals(channel=Channel, name=bytes)
    cpdef bint removexattr(self) except -1
