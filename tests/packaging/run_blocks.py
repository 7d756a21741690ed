"""Runs the command lines and Python blocks of pages as a reader would, in a root where pinfs is installed.

    python3 run_blocks.py PAGE...

A line stands for itself, with the names of the page filled in (FILE, MOUNT...). A comment that quotes an error says
that the line must fail with it. Prints each line with what came of it; exit status 1 where one was not as said.
Standard library only.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LIMIT_S = 30
END = "@end-of-line@"
EXPECTED = re.compile(r"Device or resource busy|refused: .*")
VERBS = "mount|umount|upgrade|pin|ls|watch|top|release|revoke|policy|status|doctor|unseal|debug|bench|web|cluster"
COMMANDS = re.compile(rf"^(pinfs ({VERBS})|mount|mount\.py|truncate|setfattr|getfattr|mkdir|umount)\b")
NAMES = {
    "FILE[:START:LENGTH]": "/mnt/models/big.bin:0:4096",
    "MOUNTPOINT": "/mnt/models",
    "MOUNT": "/mnt/models",
    "SOURCE": "/srv/models",
    "FILE": "/mnt/models/big.bin",
    "DIR": "/mnt/models",
    "NAME": "page",
    "[OTHER...]": "/srv/models --quick",
    "COMMAND...": "true",
    "[-o OPTIONS] [--daemon]": "--daemon",
    "-o OPTIONS": "-o break_timeout=20",
}
LEFT_OUT = {
    r"^mount\.py ": "the launcher of a checkout",
    r"^mount -t fuse /opt/": "pinfs in another place",
    r"^mount --bind": "the root is a chroot, which is no mount point",
    r"^pinfs (watch|top)\b": "goes on until Ctrl-C",
    r"^pinfs ls .*--watch": "goes on until Ctrl-C",
    r"^pinfs bench ": "takes minutes",
    r"^pinfs upgrade ": "the program is the one that serves; debian_life.sh upgrades",
    r"^pinfs unseal ": "takes a daemon that was killed",
    r"^pinfs cluster |cluster=": "hosts that share a directory, and an etcd",
    r"nfs_export=on": "an overlay, on which the root lies, has no file handles",
    r"/share/|/mnt/bindfs|/srv/shared|/dev/shm/|/mnt/(plain|asks)\b": "directories of another machine",
    r"/mnt/vm\.ram|/srv/guests": "a machine with guests",
}
"""Lines that are not tried, and why. Each pattern is needed: the test checks."""

PYTHON_NEEDED = re.compile(r"^import .*\bpinfs\b", re.MULTILINE)
NOT_TRIED = re.compile(r"pinfs_mount|async with|\bcuda\b")
"""Python that takes pytest, a running loop, or a GPU."""
PRELUDE = "serve = lambda mapping: None\n"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language (`` for an indented block) and text of each code block."""
    for fenced in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield fenced[1] or "text", fenced[2]
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for indented in re.finditer(r"(?:\A|\n\n)((?:    .*\n|\n)+)", text):
        if not re.search(r"^[-*|] .*\n+\Z", text[: indented.start()].rpartition("\n\n")[2] + "\n"):
            yield "", re.sub(r"^    ", "", indented[1], flags=re.MULTILINE)


def lines(block: str) -> Iterator[tuple[str, str]]:
    """Commands and the comments behind them."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        command, _, comment = line.partition(" #")
        if COMMANDS.match(command):
            yield command.strip(), comment.strip()


def filled_in(command: str) -> str:
    for name, value in NAMES.items():
        command = re.sub(rf"(?<![\w./]){re.escape(name)}(?![\w=])", value, command)
    return command


def unmount() -> None:
    """In order, so that no seal stays behind; by force what is still in use."""
    for how in (["--wait", "5"], ["--force"]):
        if os.path.ismount("/mnt/models"):
            subprocess.run(["pinfs", "umount", *how, "/mnt/models"], check=False, capture_output=True)


def reset() -> None:
    """A mount of a fresh file, and nothing else of the line before."""
    unmount()
    subprocess.run(["pinfs", "unseal", "/srv/models"], check=False, capture_output=True)
    for directory in ("/srv/models", "/mnt/models"):
        os.makedirs(directory, exist_ok=True)
    Path("/srv/models/big.bin").write_bytes(bytes(65536))
    subprocess.run(["pinfs", "mount", "/srv/models", "/mnt/models", "--daemon"], check=True, capture_output=True)


class Shell:
    """One bash for the lines of a block, as a reader has one: `$$` and background jobs last from line to line."""

    def __init__(self) -> None:
        self._bash = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, command: str) -> tuple[int, str]:
        """Exit status and output. TimeoutError: the line does not end within LIMIT_S; the shell is of no use then."""
        if re.match(r"pinfs mount .*/mnt/models|mount -t .*/mnt/models", command):
            unmount()
            if "--daemon" not in command and not command.startswith("mount"):
                command += " --daemon"
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        signal.alarm(LIMIT_S)
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null\nstatus=$?; echo; echo {END} $status\n")
        self._bash.stdin.flush()
        said = []
        while not (line := self._bash.stdout.readline()).startswith(END):
            said.append(line)
        if command.endswith("&") and " pin " in command:  # the next line finds it there
            while subprocess.run("pinfs ls /mnt/models | grep -q deny", shell=True, check=False).returncode:
                pass
        signal.alarm(0)
        return int(line.split()[1]), "".join(said).strip()

    def close(self) -> None:
        """Background jobs go on, with its pipe."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.kill()
        self._bash.stdin.close()
        self._bash.stdout.close()
        self._bash.wait()


def as_said(shell: Shell, command: str, comment: str) -> tuple[bool, str]:
    status, output = shell.run(command)
    for words in EXPECTED.findall(comment):
        return status != 0 and words.removeprefix("refused: ") in output, output
    return status == 0, output


def try_block(shell: Shell, language: str, block: str) -> Iterator[tuple[str, str, str]]:
    """Verdict, line, and what there is to say."""
    if language == "python":
        if PYTHON_NEEDED.search(block) and not NOT_TRIED.search(block):
            Path("/root/block.py").write_text(PRELUDE + block)
            ok, output = as_said(shell, "python3 /root/block.py", "")
            yield "ok" if ok else "FAILED", block.strip().splitlines()[0], output
        return
    if language:
        return
    for command, comment in lines(block):
        reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, command)), None)
        if reason:
            yield "left out", command, reason
        else:
            try:
                ok, output = as_said(shell, filled_in(command), comment)
            except TimeoutError as error:
                yield "FAILED", command, str(error)
                return
            yield "ok" if ok else "FAILED", command, output.strip()[-600:]


def too_long(_number: int, _frame: object) -> None:
    raise TimeoutError(f"it does not end in {LIMIT_S} s")


def main(pages: list[str]) -> int:
    signal.signal(signal.SIGALRM, too_long)
    os.chdir("/root")
    Path("serve").write_text("#!/bin/sh\nexec sleep 600\n")
    Path("serve").chmod(0o755)
    failed = 0
    for page in pages:
        for language, block in blocks(Path(page).read_text()):
            reset()
            shell = Shell()
            for verdict, line, words in try_block(shell, language, block):
                failed += verdict == "FAILED"
                text = f"{page.rpartition('/')[2]}: {verdict}: {line}" + (f"\n    {words}" if verdict != "ok" else "")
                print(text, flush=True)
            shell.close()
            with suppress(subprocess.CalledProcessError):
                for pid in subprocess.check_output(["pgrep", "-x", "sleep"], text=True).split():
                    os.kill(int(pid), signal.SIGTERM)
    unmount()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
