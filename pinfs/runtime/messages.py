"""The identifiers of log lines, which stay where words change (docs/messages.md).

A call of the log names only its format; the identifier is found by logger and format when the line is written.
tests/packaging/test_messages.py fails where a format has none, and where the page does not explain it.
"""

from logging import LogRecord
from typing import Final

_NUMBERS: Final[dict[str, dict[str, int]]] = {
    "pinfs.daemon": {
        "%s is mounted on %s": 101,
        "negotiated (protocol 7.%d): %s": 102,
        "passthrough: %s": 103,
        "seal: %s": 104,
        "serving by pyfuse3 alone: %s": 105,
        "busy_poll has no effect: this machine has one processor": 106,
        "signal %s": 107,
        "state and tasks": 108,
        "unmounting %s": 109,
        "%s is detached while in use by %s": 110,
        "%s cannot be unmounted: %s": 111,
        "cannot serve: %s": 112,
        "the daemon ends": 113,
        "handing over %s": 401,
        "nothing would take over (survive=off): this daemon goes on": 402,
        "the daemon has failed; the next one takes over": 403,
        "all pins are restored: %d": 404,
        "%s on %s goes on until it is unmounted: %s on %s has to wait": 405,
        "the mount ends with this daemon: %s": 406,
        "the history of the mount cannot be read: %s": 407,
        "the options of the cluster have changed: that holds for the next mount only": 721,
    },
    "pinfs.mount": {
        "replacing the stale mount on %s": 114,
        "hosts of a cluster have served the source (%s), and would not know of the pins of this mount (%s)": 719,
    },
    "pinfs.bridge": {
        "unmounted": 115,
        "the connection was aborted": 116,
        "ended before it was usable: %s": 117,
        "a request could not be read: %s": 501,
        "a request of %d bytes is shorter than its header: dropped": 502,
        "a malformed request (opcode %d) that gets no reply: dropped": 503,
        "opcode %d was answered with nothing: EIO": 504,
        "the kernel did not take a message: %s": 505,
    },
    "pinfs.guard": {
        "%s is refused (%s)%s": 201,
        "%s waits for %s": 202,
        "%s is revoked (%s)%s": 203,
        "%s is killed%s": 204,
        "%s is mapped by pid %d": 205,
        "while telling of %s": 206,
        "%s": 207,
        "%s is killed: this host is cut off": 714,
    },
    "pinfs.cuts": {
        "%s waits in the kernel: %s": 208,
        "%s has come back from the kernel": 209,
        "%s cannot be interrupted in the kernel, and may still be done": 210,
    },
    "pinfs.holders": {
        "after the death of %r": 211,
        "eventfds cannot be signalled: io_setup(2): %s": 212,
        "eventfd %d of %r cannot be fetched: %s": 213,
        "eventfd %d is not signalled: %s": 214,
    },
    "pinfs.backing": {
        "no CAP_SETPCAP: new files are created without the caller's supplementary groups": 301,
    },
    "pinfs.control": {
        "poll(2) is answered no more: a regular file was polled, as io_uring does (poll=auto)": 302,
    },
    "pinfs.seal": {
        "some files are pinned without a seal: %s": 303,
        "lifted the seals of %d files, left by a daemon that was killed": 304,
        "the seal of inode %d cannot be lifted: %s": 305,
        "the seal of %s, inode %d, cannot be lifted: %s": 306,
    },
    "pinfs.passthrough": {
        "some files go through the daemon: %s": 307,
        "backing id %d cannot be given back: %s": 308,
    },
    "pinfs.journal": {
        "the mount would not survive the daemon any more: %s": 408,
        "a file without a name would not survive the daemon: %s": 409,
        "not restored: %s: %s": 410,
    },
    "pinfs.store": {
        "a descriptor will not outlive this daemon: %s": 411,
        "no barrier: %s": 412,
        "the next daemon cannot take over, so this one goes on: %s": 413,
        "%s: another one is started": 414,
        "the mount will not outlive this daemon: %s": 415,
        "%s was closed before it was dropped": 416,
    },
    "pinfs.errors": {
        "%s failed unexpectedly": 506,
        "%d further unexpected failures were not logged": 507,
    },
    "pinfs.policy": {
        "policy from %s: %s": 601,
        "policy from %s refused, the old one stays in force: %s": 602,
    },
    "pinfs.scrape": {
        "metrics at http://%s:%d/metrics": 603,
        "no connection for metrics: %s": 604,
    },
    "pinfs.notify": {
        "the service manager cannot be told: %s": 605,
    },
    "pinfs.cluster": {
        "joined the cluster as %s": 701,
        "the daemon has failed at %s": 723,
        "%s is cut off from the cluster (%s): %d pins are gone": 702,
        "%s could not join the cluster: %s": 703,
        "the pins of the daemon before are lost: %s": 704,
        "the watch of etcd ended, and everything is read anew: %s": 705,
        "etcd was restored, or is another one: %s": 706,
        "etcd does not answer (%s): pins and removals fail until it does": 708,
        "this host does not join: %s": 709,
        "another machine calls itself %s in this cluster: give each a name of its own (cluster_host=)": 715,
        "host %s is in the cluster, but has left no token here for %d s: it serves another directory": 716,
        "host %s serves this directory, or has left": 717,
        "whether the source is shared cannot be seen: %s: %s": 718,
    },
    "pinfs.cluster.etcd": {
        "the watch is interrupted: %s": 707,
    },
    "pinfs.hosts": {
        "a pin or removal has failed: this host is cut off from the others (pinfs cluster status)": 710,
        "%s waits for leases at %s": 711,
        "%s: the name stays, as its bytes get no other: %s": 712,
        "pin %d: its file cannot be named to the other hosts: %s": 713,
    },
    "pinfs.config": {
        "[%s] of %s has changed: that holds for the next mount only": 720,
        "%s": 722,
    },
    "pinfs.web": {
        "%s cannot be shown": 606,
    },
}

IDENTIFIERS: Final = {(logger, text): f"P{n}" for logger, numbers in _NUMBERS.items() for text, n in numbers.items()}
"""By logger and format; of a format of several lines, by its first."""


def identifier(record: LogRecord) -> str | None:
    """That of a record, or None where it has none: level debug, another library's logger."""
    return IDENTIFIERS.get((record.name, str(record.msg).partition("\n")[0]))
