"""What programs import to pin: plain threads here, trio in `pinfs.client.trio`. Needs nothing but the standard library.

    errors      what an errno means to a holder, and what to do
    model       a pin and an event, as the mount's JSON tells of them
    inode       a file held by its inode: no open, no path that a rename could redirect
    mounts      from a file to the mount it lies on, and to its `.pinfs`
    xattrs      the verbs of SPEC 5
    ioctl       the verbs of SPEC 6
    relay       the channel of a mount that does not answer poll(2)
    channel     `.pinfs/events`
    callbacks   one thread for each mount that carries breaks to callbacks
    basepin     what all pins have in common
    processpin  pins of a process, by attributes
    handlepin   pins of an open file, by ioctls
    pin         `pinfs.pin` and `pinfs.pins`
    registered  `pinfs.register`: pinned, mapped, and registered with the library of a device
    cuda        the CUDA runtime as such a library
    trio        the same for trio programs

The arrows run up this list only.
"""
