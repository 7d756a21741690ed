"""Pins across hosts (SPEC 14, planned)."""
