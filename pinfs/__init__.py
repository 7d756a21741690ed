"""pinfs: pins that hold. What programs import; needs nothing but the standard library.

with pinfs.pin("/mnt/model.bin", mode="lease", on_break=let_go) as pin:
    ...
"""

import os

if os.environ.get("PINFS_PURE"):
    from pinfs.pure import use_sources

    use_sources()
    del use_sources

from pinfs.client import ioctl
from pinfs.client.channel import EventChannel, all_pins, events
from pinfs.client.errors import NotPinfsError
from pinfs.client.model import Event, PinInfo
from pinfs.client.pin import Pin, pin, pins
from pinfs.client.registered import Registrar, Registration, register

__version__ = "0.2.0.dev0"

__all__ = [
    "Event",
    "EventChannel",
    "NotPinfsError",
    "Pin",
    "PinInfo",
    "Registrar",
    "Registration",
    "__version__",
    "all_pins",
    "events",
    "ioctl",
    "pin",
    "pins",
    "register",
]
