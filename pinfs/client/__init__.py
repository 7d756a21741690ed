"""What programs import to pin: plain threads here, trio in `pinfs.client.trio`. Needs nothing but the standard library.

    errors      what an errno means to a holder, and what to do
    model       a pin and an event, as the mount's JSON tells of them
    inode       a file held by its inode: no open, no path that a rename could redirect
    mounts      from a file to the mount it lies on, and to its `.pinfs`
    xattrs      the verbs of SPEC section 5
    ioctl       the verbs of SPEC section 6
    channel     `.pinfs/events`
    dispatch    one thread for each mount that carries breaks to callbacks
    pin         the pins themselves

The arrows run up this list only.
"""
