"""What outlives the daemon of a mount: a small program of its own that imports nothing of pinfs."""
