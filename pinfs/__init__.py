"""pinfs: pins that hold. What programs import; needs nothing but the standard library."""

__version__ = "0.1.0"
