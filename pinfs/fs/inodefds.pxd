from pinfs.fs.inode cimport Inode
from pinfs.linux.calls cimport close_fd

cdef class InodeDescriptors:
    cdef public long max_descriptors
    cdef public object closable, close_elsewhere, on_foreign, by_handle
    cdef public set _pinned
    cdef object _pinned_files, _note_life

    cpdef keep(self, Inode inode, int fd)
    cpdef named(self, Inode inode)
    cpdef nameless(self, Inode inode)
    cpdef close(self, Inode inode)
    cdef _let_go(self, Inode inode)
