"""What the mount and its clients agree on: names (SPEC 5, 7) and the structs of `pinfs/include/pinfs.h` (SPEC 6).

Standard library only: programs import it with the client, the daemon with its operations.
"""
