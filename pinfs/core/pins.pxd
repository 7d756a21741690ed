cdef class Pin:
    cdef public object id, inode, owner, process, uid, name, spec, proxy_uid, charged, own_key, breaking
    cdef public double since
