"""Linux itself: system calls, mount tables, signals, /proc, ioctl numbers. Standard library only, nothing of pinfs."""
