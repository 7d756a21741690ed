"""The process behind `held.HeldPin`: takes one line of JSON, holds one pin until its standard input ends."""

import json
import sys
import threading
from typing import Any

import pinfs


def say(what: str, **words: Any) -> None:
    print(json.dumps({"what": what, **words}), flush=True)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    let_go = threading.Event()
    if request["lets_go"]:
        let_go.set()

    def on_break(event: pinfs.Event) -> None:
        say("break", event={key.rstrip("_"): value for key, value in vars(event).items()})
        let_go.wait()

    try:
        callback = on_break if request["mode"] == "lease" else None
        pin = pinfs.pin(
            request["path"],
            request["start"],
            request["length"],
            mode=request["mode"],
            note=request["note"],
            on_break=callback,
        )
    except OSError as error:
        say("error", errno=error.errno, text=error.strerror)
        return
    say("pinned", id=pin.id)
    sys.stdin.read()
    let_go.set()
    pin.release()


if __name__ == "__main__":
    main()
