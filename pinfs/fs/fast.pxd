cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pinfs.fs.attributes cimport Attributes
from pinfs.fs.backing cimport Backing
from pinfs.fs.handles cimport FileHandle, Handle, HandleTable
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.names cimport Names
from pinfs.fs.opens cimport Opens
from pinfs.fs.pins cimport PinVerbs
from pinfs.fs.removals cimport JudgedTruncate, Removals
from pinfs.fs.set_ids cimport SetIds
from pinfs.linux.calls cimport Stat, mkdir_at, rmdir_at, stat_at, stat_fd

cdef int ENOENT
cdef uint32_t KEEPS_VICTIM, S_IFREG, XATTR_CREATE, _MODE_BITS, _O_TRUNC
cdef uint64_t FOREIGN_IDS

cdef class FastOperations:
    cdef public Stat st
    cdef public object intents
    cdef public long intent
    cdef public bint is_missing
    cdef Stat _other
    cdef InodeTable _inodes
    cdef Backing _backing
    cdef Opens _opens
    cdef PinVerbs _pins
    cdef Names _names
    cdef Removals _removals
    cdef Attributes _attributes
    cdef SetIds _set_ids
    cdef object _in_kernel
    cdef dict _by_id, _pinned_owners
    cdef object _uncached
    cdef set _slow_names
    cdef HandleTable _handles

    cdef _begin(self, object request, Stat st, Stat other)
    @cython.locals(intent=long)
    cdef _executed(self, object request)
    @cython.locals(intent=long)
    cpdef drop_intent(self, object request)
    cdef Inode _directory(self, uint64_t parent, bytes name)
    cdef Inode _unlocked_directory(self, uint64_t parent, bytes name)
    @cython.locals(directory=Inode, st=Stat, error=int, inode=Inode)
    cpdef Inode lookup(self, uint64_t parent, bytes name, object request)
    cpdef forget(self, uint64_t nodeid, uint64_t nlookup)
    @cython.locals(directory=Inode, directory_fd=int)
    cpdef Inode mkdir(self, uint64_t parent, bytes name, uint32_t mode, object request)
    @cython.locals(directory=Inode, directory_fd=int)
    cpdef Inode symlink(self, uint64_t parent, bytes name, bytes target, object request)
    @cython.locals(directory=Inode, inode=Inode)
    cpdef Inode link(self, uint64_t nodeid, uint64_t parent, bytes name, object request)
    @cython.locals(directory=Inode)
    cdef Inode _begin_making(self, uint64_t parent, bytes name, object request)
    @cython.locals(error=int, inode=Inode)
    cdef Inode _made(self, Inode directory, bytes name, object request)
    @cython.locals(directory=Inode, st=Stat, victim=Inode)
    cpdef bint unlink(self, uint64_t parent, bytes name, object request) except -1
    @cython.locals(directory=Inode, st=Stat, victim=Inode)
    cpdef bint rmdir(self, uint64_t parent, bytes name, object request) except -1
    cdef _begin_removing(self, Inode victim, Stat st, object request)
    @cython.locals(source=Inode, target=Inode, st=Stat, other=Stat, moved=Inode, victim=Inode, error=int, takes=bint)
    cpdef bint rename(
        self, uint64_t parent, bytes name, uint64_t new_parent, bytes new_name, uint32_t flags, object request
    ) except -1
    @cython.locals(inode=Inode)
    cpdef Inode getattr(self, uint64_t nodeid)
    cdef Inode _unlocked(self, uint64_t nodeid)
    @cython.locals(inode=Inode)
    cpdef Inode chmod(self, uint64_t nodeid, uint32_t mode)
    @cython.locals(inode=Inode)
    cpdef Inode utimes(self, uint64_t nodeid, object atime_ns, object mtime_ns)
    @cython.locals(inode=Inode)
    cpdef Inode truncate(self, uint64_t nodeid, object size, object request)
    @cython.locals(inode=Inode)
    cpdef JudgedTruncate judge_truncate(self, uint64_t nodeid, object size, object request)
    cdef Inode _changed(self, Inode inode)
    @cython.locals(inode=Inode, cuts=uint32_t)
    cpdef FileHandle open(self, uint64_t nodeid, uint32_t flags, bint kill_suidgid, object request)
    cdef bint _cut(self, Inode inode, bint kill_suidgid, object request) except -1
    @cython.locals(directory=Inode, st=Stat, fd=int, error=int, inode=Inode, handle=FileHandle)
    cpdef FileHandle create(
        self, uint64_t parent, bytes name, uint32_t mode, uint32_t flags, bint kill_suidgid, object request
    )
    cpdef int backing_id(self, Inode inode) except -1
    @cython.locals(error=int)
    cpdef long cache_flags(self, Inode inode, bint with_entry) except -1
    @cython.locals(handle=Handle)
    cpdef bint release(self, uint64_t fh) except -1
    @cython.locals(handle=Handle)
    cpdef Inode file(self, uint64_t fh)
    @cython.locals(inode=Inode)
    cpdef bytes read(self, uint64_t fh, int64_t offset, uint32_t size)
    @cython.locals(inode=Inode)
    cpdef int64_t write(self, uint64_t fh, int64_t offset, object data) except? -2
    @cython.locals(inode=Inode)
    cpdef object statfs(self, uint64_t nodeid)
    @cython.locals(inode=Inode)
    cpdef bint fsync(self, uint64_t fh, bint datasync) except -1
    @cython.locals(inode=Inode, fd=int)
    cpdef uint64_t opendir(self, uint64_t nodeid, object request) except? 0
    @cython.locals(inode=Inode)
    cpdef bint setxattr(self, uint64_t nodeid, bytes name, bytes value, uint32_t flags, object request) except -1
    @cython.locals(inode=Inode)
    cpdef object getxattr(self, uint64_t nodeid)
    @cython.locals(inode=Inode)
    cpdef bytes pin_text(self, uint64_t nodeid, bytes name, uint32_t size, object request)
    @cython.locals(inode=Inode)
    cpdef bint removexattr(self, uint64_t nodeid, bytes name, object request) except -1
