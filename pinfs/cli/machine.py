"""Checks of this machine. Features are probed wherever possible, not derived from versions."""

import ctypes
import errno
import fcntl
import importlib
import os
import pwd
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path

from pinfs.cli.findings import Finding, bad, ok, warn
from pinfs.linux.eventfds import Signaller, fetch_descriptor
from pinfs.linux.ioctl import FUSE_DEV_IOC_BACKING_OPEN
from pinfs.pure import is_compiled

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_CAPABILITIES = {"chown": 0, "dac_override": 1, "fowner": 3, "fsetid": 4, "kill": 5, "setgid": 6, "setuid": 7,
                 "linux_immutable": 9, "sys_ptrace": 19, "sys_admin": 21, "mknod": 27}  # fmt: skip
_ENOUGH_DESCRIPTORS = 16384
MTAB = Path("/etc/mtab")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where systemd, and so mount(8) at boot, looks for programs."""
_OLDEST_LIBFUSE = (3, 3)  # the first that takes /dev/fd/N as mount point


def check_machine() -> Iterator[Finding]:
    """All checks that need no directory, in the order of fixing."""
    checks: list[Callable[[], Finding]] = [
        _kernel, _device, _fusermount, _libfuse, _pyfuse3,
        _compiled, _passthrough, _survival, _capabilities, _eventfds, _descriptors, _pid_namespace, _proc, _mount8,
    ]  # fmt: skip
    for check in checks:
        yield check()


def _kernel() -> Finding:
    release = os.uname().release
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return bad(
            "kernel", f"{release} has no pidfds ({error.strerror})", "run Linux 5.4 or later; 6.9 for passthrough"
        )
    return ok("kernel", f"{release}")


def _compiled() -> Finding:
    check = "compiled modules"
    if is_compiled():
        return ok(check, "pinfs runs compiled")
    if os.environ.get("PINFS_PURE"):
        return warn(check, "pinfs runs interpreted: PINFS_PURE is set", "unset PINFS_PURE")
    return warn(
        check,
        "pinfs runs interpreted: a request costs it about twice the time",
        "install a C compiler and Python's headers (gcc, python3-dev), then pinfs again",
    )


def _device() -> Finding:
    check = "/dev/fuse"
    fixes = {
        errno.ENOENT: "modprobe fuse; in a container: --device /dev/fuse",
        errno.EPERM: "in a container: --device /dev/fuse (the device cgroup refuses it)",
        errno.EACCES: "chmod 666 /dev/fuse, as udev does",
    }
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return bad(check, f"cannot be opened: {error.strerror}", fixes.get(error.errno or 0, "modprobe fuse"))
    is_device = stat.S_ISCHR(os.fstat(fd).st_mode)
    os.close(fd)
    if not is_device:
        return bad(check, "is not a character device", "rm /dev/fuse && mknod -m 666 /dev/fuse c 10 229")
    return ok(check, "can be opened")


def _fusermount() -> Finding:
    check, path = "fusermount3", shutil.which("fusermount3")
    if os.geteuid() == 0:
        return (
            ok(check, path) if path else warn(check, "is not installed (root mounts without it)", "apt install fuse3")
        )
    if path is None:
        return bad(check, "is not installed", "apt install fuse3")
    if not Path(path).stat().st_mode & stat.S_ISUID:
        return bad(check, f"{path} is not set-user-id", f"chown root {path}; chmod u+s {path}")
    if not _has_name(os.getuid()):
        return bad(check, f"{path} needs a name for user {os.getuid()}", "give that user a line in /etc/passwd")
    if not MTAB.exists():
        # fusermount3 looks up the owner of a mount there (may_unmount in util/fusermount.c of libfuse).
        return warn(check, f"{path} finds no {MTAB}: it mounts, but refuses to unmount",
                    f"as root: ln -s /proc/self/mounts {MTAB}")  # fmt: skip
    return ok(check, path)


def _has_name(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _libfuse() -> Finding:
    name = find_library("fuse3")
    try:
        library = ctypes.CDLL(name or "libfuse3.so.3")
    except OSError:
        return warn(
            "libfuse",
            "libfuse3 is not installed: no -o bridge=off",
            "apt install libfuse3-dev pkg-config (to build pyfuse3)",
        )
    number = int(library.fuse_version())  # 314, later 317
    version = divmod(number, 100)
    text = ".".join(map(str, version))
    if version < _OLDEST_LIBFUSE:
        return warn(
            "libfuse",
            f"{text} takes no open descriptor as mount point: no -o bridge=off",
            "install libfuse 3.10 or later",
        )
    return ok("libfuse", text)


def _pyfuse3() -> Finding:
    try:
        importlib.import_module("pyfuse3")
        importlib.import_module("trio")
    except (ImportError, OSError) as error:
        return warn(
            "pyfuse3",
            f"cannot be imported: no -o bridge=off ({error})",
            "apt install gcc pkg-config libfuse3-dev; pip install pinfs",
        )
    return ok("pyfuse3", f"{metadata.version('pyfuse3')}, trio {metadata.version('trio')}")


def _passthrough() -> Finding:
    lost = "reads, writes and mappings go through the daemon"
    error = _backing_open_errno()
    if error == errno.ENOTTY:
        return warn("passthrough", f"not in this kernel: {lost}", "run Linux 6.9 or later")
    if error == errno.EOPNOTSUPP:
        return warn("passthrough", f"not configured into this kernel: {lost}", "CONFIG_FUSE_PASSTHROUGH=y")
    if "sys_admin" not in effective_capabilities() or not _in_initial_user_namespace():
        return warn("passthrough", f"needs root (CAP_SYS_ADMIN of the machine): {lost}", "mount as root")
    if error != errno.EPERM:
        return warn("passthrough", f"cannot be probed ({os.strerror(error)})", "fix /dev/fuse first")
    return ok("passthrough", "the kernel has it")


def _survival() -> Finding:
    """FUSE_NOTIFY_RESEND came with passthrough; INIT alone tells of it, and the ioctl of the other can be tried."""
    check = "survival"
    if _backing_open_errno() == errno.ENOTTY:
        return warn(
            check, "this kernel does not send requests again: mounts end with their daemon", "run Linux 6.9 or later"
        )
    return ok(check, "mounts in the background outlive their daemon")


def _backing_open_errno() -> int:
    """The kernel's error for a backing file without a mount: EPERM, or ENOTTY where passthrough is missing."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        fcntl.ioctl(fd, FUSE_DEV_IOC_BACKING_OPEN, bytes(16))
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(fd)
    return 0


def effective_capabilities() -> set[str]:
    """Names (lower case, without CAP_) of those capabilities that pinfs can use and this process has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return {name for name, bit in _CAPABILITIES.items() if bits >> bit & 1}
    return set()


def _in_initial_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _capabilities() -> Finding:
    have = effective_capabilities()
    missing = sorted(set(_CAPABILITIES) - have)
    if not have:
        return warn("capabilities", "none: a mount serves its own user only", "mount as root to serve all users")
    if missing:
        names = ", ".join(missing)
        return warn("capabilities", f"not held: {names}", "in a container: --cap-add for each of them")
    return ok("capabilities", "all that pinfs can use")


def _eventfds() -> Finding:
    check = "eventfds"
    try:
        _try_eventfds()
    except OSError as error:
        return warn(
            check,
            f"the daemon cannot write to those of holders ({error.strerror}): they have signals and `.pinfs/events`",
            "allow pidfd_getfd, io_setup and io_submit (seccomp); in a container: --cap-add SYS_PTRACE",
        )
    return ok(check, "the daemon can write to those of holders")


def _try_eventfds() -> None:
    with ExitStack() as undo:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        undo.callback(os.close, fd)
        pidfd = os.pidfd_open(os.getpid())
        undo.callback(os.close, pidfd)
        os.close(fetch_descriptor(pidfd, fd))
        signaller = Signaller()
        undo.callback(signaller.close)
        signaller.signal(fd)


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} now, {hard} at most"
    if 0 <= hard < _ENOUGH_DESCRIPTORS:
        return warn("descriptors", text, "systemd: LimitNOFILE=; a shell: ulimit -Hn; podman: --ulimit nofile=")
    return ok("descriptors", text)


def _pid_namespace() -> Finding:
    if Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE:
        return ok("pid namespace", "the machine's: every process can hold pins")
    return warn(
        "pid namespace",
        "not the machine's: processes outside it can own handle pins (ioctl) only",
        "run the daemon on the host, or all containers with one pid namespace (--pid=host, --pid=container:NAME)",
    )


def _proc() -> Finding:
    if not _proc_is_ours():
        return bad(
            "/proc",
            "belongs to another pid namespace: pins would be booked to the wrong processes",
            "give the daemon a /proc of its own (unshare --pid --fork --mount-proc)",
        )
    if os.access("/proc/1/status", os.R_OK):
        return ok("/proc", "shows the processes of all users")
    return warn(
        "/proc", "hides other users' processes (hidepid): they cannot own pins", "mount -o remount,hidepid=0 /proc"
    )


def _mount8() -> Finding:
    """mount(8) runs mount.fuse.pinfs for the type fuse.pinfs, or else mount.fuse3, which has the shell find `pinfs`."""
    check = "mount(8)"
    if shutil.which("mount.fuse.pinfs", path=SYSTEM_PATH):
        return ok(check, "mount -t fuse.pinfs and /etc/fstab find pinfs")
    if not shutil.which("mount.fuse3", path=SYSTEM_PATH):
        return warn(check, "`mount -t fuse.pinfs` and /etc/fstab fail: mount.fuse3 is not installed",
                    "apt install fuse3, then packaging/install")  # fmt: skip
    if shutil.which("pinfs", path=SYSTEM_PATH):
        return ok(check, "mount -t fuse.pinfs and /etc/fstab find pinfs, by mount.fuse3")
    program = Path(sys.executable).parent / "pinfs"
    return warn(
        check,
        '`mount -t fuse.pinfs` and /etc/fstab do not find pinfs ("/bin/sh: pinfs: not found"); '
        f"`pinfs mount` and `mount -t fuse {program}#SOURCE MOUNTPOINT` work",
        f"as root, in the source tree of pinfs: packaging/install {program}; or: ln -s {program} /usr/local/bin/pinfs",
    )


def _proc_is_ours() -> bool:
    """/proc/self is the reader's number in the pid namespace of that /proc (pid_namespaces(7))."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except FileNotFoundError:  # the reader is not visible there
        return False
