cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pinfs.core.files cimport Files
from pinfs.fs.inode cimport Inode
from pinfs.fs.inodes cimport InodeTable
from pinfs.fs.recorder cimport Recorder
from pinfs.journal.slots cimport Slots
from pinfs.linux.calls cimport Stat

cdef uint64_t DONE_WORD, EXECUTED, WORD_BITS
cdef int _INTENT

cdef class IntentWriter:
    cdef readonly dict cuts
    cdef Recorder _recorder
    cdef Slots _slots
    cdef InodeTable _inodes
    cdef Files _pinned

    @cython.locals(slot=uint64_t)
    cpdef uint64_t write(self, uint64_t unique, uint32_t opcode, tuple facts) except? 0
    @cython.locals(slot=uint64_t, at=uint64_t, words=uint64_t[::1])
    cdef uint64_t _begin(self, uint64_t unique, uint32_t opcode, uint64_t size, uint64_t was_there) except? 0
    @cython.locals(at=uint64_t, words=uint64_t[::1])
    cdef _lead_to(self, uint64_t slot, uint64_t device, uint64_t ino, uint64_t other_device, uint64_t other_ino)
    @cython.locals(slot=uint64_t)
    cpdef uint64_t begin(self, object request, Stat st, Stat other) except? 0
    cpdef executed(self, object request, uint64_t slot)
    cpdef drop(self, object request, uint64_t slot)
    cpdef keep(self, Inode victim)
