"""The keeper of one mount: it holds what must outlive the daemon, and starts the next daemon when one ends.

A program of its own, run by `python -I -S -E .../keeper/keeper.py KEY=VALUE...`. It imports nothing else of pinfs and
little of the standard library, so that it stays below 10 MB and has few reasons to fail. pinfs/serve/kept.py starts it.

It talks to daemons over a socketpair(2) of type SOCK_SEQPACKET, which has no name: no other process can reach it.
A message is a list of assignments, one a line, in the words of sd_notify(3). Descriptors travel with it (SCM_RIGHTS).

From the daemon: FDSTORE=1 with FDNAME=NAME and a descriptor, FDSTOREREMOVE=1 with FDNAME=NAME, READY=1, STOPPING=1,
WATCHDOG=1, WATCHDOG_USEC=N, BARRIER=1 (its descriptor is closed once all before it is done); and words of its own:
    SPARE=1              all is imported: this process can take over
    PINFS_ARGV=HEX       the command of the next daemon, NUL between the words
    PINFS_HANDOVER=1     start the next daemon, then tell this one to leave
    PINFS_MOUNT=DEV:HEX  the mount: its device number and mount point
    PINFS_DEATHS=N       give up when so many daemons die within a minute; 0: never
    PINFS_SPARE=0|1      whether a spare is kept ready
    PINFS_FAILED=TEXT    this process cannot go on, and ends
    PINFS_ENDED=1        the mount is over
To the daemon: KEEPER=PID with FDSTORE=LIMIT at first; TAKE=1 with FDNAMES=A:B:C, their descriptors, and LEFT=N messages
to follow (the last one tells WHY=, DIED_NS=, REFUSED=, and HUNG=1 where the daemon was killed as hung); LEAVE=1: the
next daemon waits; REFUSED=TEXT: there is none.

The next daemon finds its socket by PINFS_KEEPER, and by PINFS_STDERR the stderr that it is to use once it is loaded:
what it writes before that, the keeper reads if it dies.
"""

import sys


def main() -> int:
    """The package that this file lies in is `keeper` here: as `pinfs.keeper` it would load all of pinfs."""
    parent = __file__.rpartition("/")[0].rpartition("/")[0]
    sys.path.append(parent)
    keeping = __import__("keeper.keeping", fromlist=["main"])
    sys.path.remove(parent)
    status: int = keeping.main(sys.argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
