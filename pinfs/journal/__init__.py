"""What a daemon leaves for the next one to take over (SPEC 13)."""
