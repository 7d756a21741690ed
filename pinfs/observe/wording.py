"""What happens to pins, in words for people, without characters that a terminal or a page would obey. Pure."""

import time
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

EventJson = dict[str, Any]
"""An event of `.pinfs/events` or a pin of `.pinfs/pins`, parsed (docs/interfaces.md)."""

# Control characters, bidirectional overrides and other invisible ones, lone surrogates (undecodable bytes of a name),
# line separators: all that a hostile note or file name could use to rewrite what the administrator sees.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: show the byte that it stands for
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def printable(text: str) -> str:
    """`text` with everything escaped that is not plainly visible on a terminal; spaces stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def differences(before: dict[int, EventJson], now: dict[int, EventJson]) -> Iterator[EventJson]:
    """Events that lead from one table of pins (by id) to the next."""
    for number in before.keys() - now.keys():
        yield _event("released", before[number])
    for number, pin in now.items():
        old = before.get(number)
        if old is None:
            yield _event("pinned", pin)
        if pin["state"] == "breaking" and (old is None or old["state"] != "breaking"):
            yield _event("break", pin)
        if pin["state"] == "held" and old is not None and old["state"] == "breaking":
            yield _event("withdrawn", pin)


def _event(kind: str, pin: EventJson) -> EventJson:
    rest = {key: value for key, value in pin.items() if key not in ("id", "state", "v")}
    return {"v": 1, "event": kind, "pin": pin["id"], **rest}


def describe(event: EventJson) -> str:
    """One event in words: the pin, its range and file, its holder, the removal and its caller, the time left."""
    words = []
    if event.get("pin") is not None:
        words.append(f"pin {event['pin']}")
    if event.get("start") is not None:
        end = event["start"] + event["length"] if event.get("length") else "end"
        words.append(f"{event.get('mode', '')} [{event['start']}, {end})".strip())
    if event.get("path") is not None:
        words.append(f"of {event['path']}")
    words += [f"held by {_process(event)}"] if event.get("pid") is not None else []
    words += [f"for {event['op']}"] if event.get("op") else []
    if event.get("host"):
        words.append(f"from host {event['host']}")
    elif event.get("breaker"):
        words.append(f"of {_process(event['breaker'])}")
    words += [f"({event[key]})" for key in ("why", "by") if event.get(key)]
    words += [f"{event['remaining_s']:.1f} s left"] if event.get("remaining_s") is not None else []
    words += [f"{event['lost']} events lost"] if event.get("lost") else []
    return " ".join(words)


def in_kernel_text(removal: EventJson) -> str:
    """A removal of `in_kernel` in `.pinfs/status`: what it takes, how long it has waited, what maps the file."""
    end = "end" if removal["to"] is None else removal["to"]
    where = f"inode {removal['inode']}" if removal["path"] is None else printable(removal["path"])
    words = [f"{removal['op']} of {where} [{removal['from']}, {end})"]
    words += [f"by {_process(removal)}"] if removal.get("pid") else []
    words += [f"has waited {removal['waited_s']:.1f} s for pages that the kernel holds"]
    words += [] if removal["interruptible"] else ["and cannot be interrupted"]
    mapped_by = [f"{_process(by)} ({by['pinned_bytes']} bytes pinned)" for by in removal.get("mapped_by", ())]
    return " ".join(words) + (f"; mapped by {printable(', '.join(mapped_by))}" if mapped_by else "")


def breaker_text(breaker: EventJson) -> str:
    """A removal of `breakers` in `.pinfs/status`: what it takes, by which process, for which pins it waits."""
    end = "end" if breaker["to"] is None else breaker["to"]
    where = f"inode {breaker['inode']}" if breaker["path"] is None else printable(breaker["path"])
    words = [f"{breaker['op']} of {where} [{breaker['from']}, {end})"]
    if breaker.get("host"):
        words.append(f"from host {printable(breaker['host'])}")
    elif breaker.get("pid"):
        words.append(f"by {printable(_process(breaker))}")
    return f"{' '.join(words)} {waits_text(breaker)}"


def waits_text(breaker: EventJson) -> str:
    """What a removal of `breakers` waits for, and how long at most."""
    numbers = ", ".join(str(number) for number in breaker["waits_for"])
    more = " and more" if breaker["more"] else ""
    for_what = f"waits for {'pin' if len(breaker['waits_for']) == 1 and not more else 'pins'} {numbers}{more}"
    if not numbers:
        for_what = "waits for an earlier removal, or for another host"
    left = breaker.get("remaining_s")
    return for_what if left is None else f"{for_what}: {left:.1f} s left"


def bytes_text(count: float) -> str:
    """A number of bytes in the largest unit that fits: `64 KiB`, `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return (
                f"{count:.0f} {unit}"
                if unit == "bytes" or count >= 100 or count == int(count)
                else f"{count:.1f} {unit}"
            )
        count /= 1024
    return f"{count:,.1f} PiB"


_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def age_text(seconds: float) -> str:
    """A time in its two largest units: `42s`, `3m 5s`, `2d 4h`."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        if left >= size or parts:
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join([*parts, f"{left}s"][:2])


def page_pins_text(allowed: str) -> str:
    """`page_pins` of `.pinfs/status`: whether the kernel lets devices hold pages of files."""
    return _PAGE_PINS.get(allowed, printable(allowed))


_PAGE_PINS: Final = {
    "yes": "yes, for reading and writing",
    "reading": "for reading only; RDMA that writes needs on-demand paging",
    "no": "no, files are DAX; RDMA needs on-demand paging",
    "unknown": "unknown, up to the kernel and the file system",
}


def cluster_text(cluster: EventJson) -> str:
    """`cluster` of `.pinfs/status`: what this host is in it, and what is wrong."""
    return "; ".join([cluster_place(cluster), *cluster_troubles(cluster)])


def cluster_place(cluster: EventJson) -> str:
    """What this host is in its cluster."""
    state = cluster["state"]
    hosts = len({member["host"] for member in cluster["members"]})
    words = f"{cluster.get('name') or 'cluster'}, as host {cluster['host']}: {state}"
    if state == "joined":
        words += f", {hosts} {'host' if hosts == 1 else 'hosts'}"
    return printable(words)


def cluster_troubles(cluster: EventJson) -> list[str]:
    """What an operator has to look at, one sentence each."""
    troubles = []
    if why := cluster.get("refused_because"):
        troubles.append(printable(why))
    if cluster["state"] != "joined":
        troubles.append("until it has joined, pins and removals get EIO")
    if why := cluster.get("interrupted_because"):
        troubles.append(f"etcd is interrupted: {printable(why)}")
    if missing := cluster.get("not_seen"):
        troubles.append(f"not the same directory there, or not shared: {printable(', '.join(missing))}")
    return troubles


def survival_text(survives: EventJson) -> str:
    """`survives` of `.pinfs/status`: whether the mount outlives its daemon."""
    if why := survives.get("unavailable_because"):
        return f"no: {printable(why)}"
    return f"yes, kept by {survives['keeper']} (journal: {survives['records']} records)"


def life_text(status: EventJson) -> str:
    """`.pinfs/status` in a sentence: whether the mount outlives its daemon, and whether it has."""
    survives = status.get("survives")
    if survives is None:  # of an older daemon
        return ""
    if why := survives.get("unavailable_because"):
        text = f"ends with its daemon: {printable(why)}"
    else:
        text = f"outlives its daemon (kept by {survives['keeper']})"
    if last := status.get("last_takeover"):
        text += f"; daemons replaced: {status['takeovers']}, the last: {takeover_text(last)}"
    return text


def takeover_text(last: EventJson) -> str:
    """`last_takeover` of `.pinfs/status`: when, why, how long callers waited, what is lost."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["at"]))
    words = f"{at}, the daemon before {_ENDED.get(last['why'], last['why'])}, pause {last['pause_ms']:.0f} ms"
    lost = lost_texts(last)
    return f"{words}; not restored: {'; '.join(lost)}" if lost else words


def lost_texts(last: EventJson | None) -> list[str]:
    """What the last take-over could not restore."""
    return [] if last is None else [printable(text) for text in last.get("not_restored", ())]


_ENDED: Final = {"died": "died", "handed over": "has handed over", "hung": "did not answer"}


def _process(process: EventJson) -> str:
    return " ".join(str(process[key]) for key in ("pid", "comm") if process.get(key) is not None)
