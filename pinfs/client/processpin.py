"""Pins of a process, by extended attributes (SPEC 5)."""

import errno
from contextlib import suppress

from pinfs.client import callbacks, xattrs
from pinfs.client.basepin import GONE, Pin, with_signal
from pinfs.client.callbacks import Callback, Watch
from pinfs.client.channel import Commands
from pinfs.client.inode import Inode
from pinfs.client.model import PinInfo
from pinfs.client.xattrs import RequestedPin


class ProcessPin(Pin):
    """Owned by this process or, with `pid=`, by another one."""

    def __init__(self, inode: Inode, name: str, requested: RequestedPin, on_break: Callback | None) -> None:
        super().__init__(name, requested)
        self._inode: Inode | None = inode
        self._watch = on_break and Watch(on_break, self.release, self.info)
        if self._watch:
            callbacks.join(inode, name, self._watch)
        try:
            self.id = xattrs.register(inode, name, with_signal(requested)).id
        except BaseException:
            self._unwatch(inode)
            raise

    def _unwatch(self, inode: Inode) -> None:
        if self._watch:
            callbacks.leave(inode, self.name, self._watch)

    def _pinned(self) -> Inode:
        if self._inode is None:
            raise OSError(errno.ENODATA, "the pin has been released")
        return self._inode

    def _replace(self, requested: RequestedPin) -> None:
        """A range goes by the event channel, because the kernel holds setxattr back while a truncate waits."""
        inode = self._pinned()
        channel = _channel_of(inode) if requested.mode == self.mode else None
        if channel is None:
            xattrs.change(inode, self.name, with_signal(requested))
        else:
            with channel:
                channel.resize(self.id, requested.start, requested.length)
        self._requested = requested

    def info(self) -> PinInfo:
        return xattrs.query(self._pinned(), self.name)

    def _release(self) -> None:
        inode = self._pinned()
        try:
            xattrs.release(inode, self.name)
        except OSError as error:
            if error.errno not in GONE:
                raise
        self._unwatch(inode)
        self._inode = None  # closes the file with the last pin on it, so that the mount is not busy

    def extend(self, seconds: float) -> None:
        with Commands(self._pinned()) as channel:
            channel.extend(self.id, seconds)


def _channel_of(inode: Inode) -> Commands | None:
    """None where there is none to be had: only a part of the mount is visible, or too many are open."""
    with suppress(OSError):
        return Commands(inode)
    return None
