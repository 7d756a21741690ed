"""Reads the state of a mount from its control directory, again and again. The calls block: run them in a thread."""

import errno
import json
import logging
import os
import stat
import time
import tomllib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Final

from pinfs.observe.asking import NoAnswerError, Question
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import cluster_text, describe, differences, in_kernel_text, life_text
from pinfs.web import picture
from pinfs.web.picture import MAX_PINS, Json, Query, text

MAX_EVENTS: Final = 100  # shown on the page
AGE_S: Final = 1.0  # after a reading that failed, the next one comes after this
_BUFFER: Final = 1 << 20

Pictures = dict[Query, Json]

log = logging.getLogger("pinfs.web")


class AskedLook:
    """A look at a mount through a process of its own: none of this one's calls waits for the daemon, which may not
    answer any more."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        wanted, self._want = os.pipe()
        self._question = Question(mount, lambda: _answers(Look(mount), wanted), keep=[wanted])
        os.close(wanted)
        self._owed = 0
        """Answers that have not come so far, as the daemon was silent when they were asked for."""

    def close(self) -> None:
        os.close(self._want)
        self._question.__exit__(None, None, None)

    def take(self, queries: Sequence[Query]) -> Pictures:
        """As `Look.take`."""
        try:
            return self._ask(queries)
        except NoAnswerError as error:
            failed = self._failed(f"{error.why}; to fix: {error.fix}")
        except OSError as error:
            failed = self._failed(error.strerror)
        return dict.fromkeys(queries, failed)

    def _failed(self, why: str | None) -> Json:
        return empty(self._mount) | {"error": text(why), "events": []}

    def _ask(self, queries: Sequence[Query]) -> Pictures:
        while self._owed:
            self._question.next()
            self._owed -= 1
        os.write(self._want, json.dumps(queries).encode() + b"\n")  # at most MAX_CLIENTS: a pipe holds more
        self._owed = 1
        answer: Pictures = self._question.next()
        self._owed = 0
        return answer


def _answers(look: "Look", wanted: int) -> Iterator[Pictures]:
    with open(wanted, "rb") as lines:
        while line := lines.readline():
            yield look.take([Query(*query) for query in json.loads(line)])


def empty(mount: Mount) -> Json:
    """What is in every picture."""
    return {"v": 1, "at": time.time(), "mount": text(mount.point)}


class Look:
    """One mount, as its control directory shows it to the user of this process."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._events: deque[Json] = deque(maxlen=MAX_EVENTS)
        self._numbers = count(1)
        self._before: dict[int, Json] | None = None
        self._trace = -1
        self.sees_all = False

    def close(self) -> None:
        if self._trace >= 0:
            os.close(self._trace)
        self._trace = -1

    def take(self, queries: Sequence[Query]) -> Pictures:
        """The whole picture for each of the queries; for a mount that does not answer, one with the key `error`."""
        shown = empty(self._mount)
        try:
            told = self._mount.status()
            pins = list(self._pins())
            common = shown | self._state(told, pins) | self._contents(pins)
            return {query: common | self._selected(pins, query) for query in queries}
        except OSError as error:
            why = error.strerror
        except (ValueError, LookupError) as error:  # not a pinfs, or one of an unknown version
            log.exception("%s cannot be shown", self._mount.point)
            why = repr(error)
        self.close()
        return dict.fromkeys(queries, shown | {"error": text(why), "events": list(self._events)})

    def _state(self, told: Json, pins: list[Json]) -> Json:
        """OSError: the mount or its daemon has ended."""
        status = {key: text(value) if isinstance(value, str) else value for key, value in told.items()}
        cluster = told.get("cluster")
        status |= {"cluster": text(cluster_text(cluster)) if cluster else None}
        status |= {"last_takeover": None, "survives": None, "breakers": None, "life": life_text(told)}
        status["in_kernel"] = [text(in_kernel_text(removal)) for removal in told.get("in_kernel", ())]
        return {
            "status": status,
            "counters": self._mount.counters(),
            "breaks": picture.breaks(told, pins),
            "hosts": picture.hosts(cluster),
        }

    def _selected(self, pins: list[Json], query: Query) -> Json:
        now_s = time.time()
        return {
            "files": picture.pins(pins, query, self._size_of, now_s),
            "holders": picture.holders((pin for pin in pins if query.selects(pin)), now_s),
        }

    def _contents(self, pins: list[Json]) -> Json:
        """OSError: the mount or its daemon has ended."""
        if self._trace < 0:
            self._open_trace()
        for event in self._trace_lines() if self.sees_all else self._differences(pins):
            self._note(event)
        values = tomllib.loads(self._mount.control("policy").read_text())
        return {
            "sees_all": self.sees_all,
            "read": len(pins),
            "policy": picture.policy(values),
            "events": list(self._events),
        }

    def _pins(self) -> Iterator[Json]:
        with self._mount.control("pins").open("rb") as lines:
            yield from map(json.loads, islice(lines, MAX_PINS))

    def _size_of(self, pin: Json) -> int | None:
        """Bytes; None: the file is gone, or another file has its name."""
        with suppress(OSError, ValueError):
            found = os.stat(os.path.join(self._mount.point, pin["path"]), follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_ino == pin["inode"]:
                return found.st_size
        return None

    # Events

    def _open_trace(self) -> None:
        try:
            self._trace = os.open(self._mount.control("trace"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
        self.sees_all = self._trace >= 0

    def _trace_lines(self) -> Iterator[Json]:
        with suppress(BlockingIOError):
            while lines := os.read(self._trace, _BUFFER):
                yield from map(json.loads, lines.splitlines())

    def _differences(self, pins: list[Json]) -> Iterator[Json]:
        """Events for users other than root, who may not read the trace; none for the time before the first reading."""
        now = {pin["id"]: pin for pin in pins}
        before, self._before = self._before, now
        return iter(()) if before is None else differences(before, now)

    def _note(self, event: Json) -> None:
        kind, words = text(event.get("event", "?")), text(describe(event))
        self._events.append({"number": next(self._numbers), "at": time.time(), "event": kind, "words": words})
