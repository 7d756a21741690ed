"""Linux itself. Standard library only, nothing of pinfs.

    abi         the machines whose numbers and layouts are known here, the size of a page
    libc        the C library, loaded once
    syscalls    system calls that Python lacks
    ioctl       numbers of ioctl(2)
    mountinfo   the table of mounts
    proc        processes
    signals     signals by name

libc and syscalls load ctypes, which takes a program some milliseconds: the client imports neither.
"""
