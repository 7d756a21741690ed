"""Translates calls by mount(8) and fstab into `pinfs mount`.

mount(8) runs `/sbin/mount.TYPE SOURCE MNT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` for the types `pinfs` and
`fuse.pinfs`. Without such a helper for the latter it runs `mount.fuse3`, which runs `pinfs SOURCE MNT -o OPTIONS` and
expects it to return when the file system is usable.
"""

from collections.abc import Collection, Iterator, Sequence

from pinfs.cli.exitcodes import ExitCode

HELPER_NAMES = frozenset({"mount.pinfs", "mount.fuse.pinfs"})
_WITH_ARGUMENT = frozenset("oNt")  # -N: mount(8) has entered the namespace already; -t: the type is known
_FLAGS = {"s": [], "n": [], "f": ["--fake"], "v": ["-v"]}  # sloppy, no mtab: there is neither strictness nor an mtab
_WRONG_CALL = frozenset({ExitCode.USAGE, ExitCode.NOT_PERMITTED, ExitCode.BAD_POLICY})
_MOUNT8_WRONG_CALL, _MOUNT8_FAILED = 1, 32


def is_called_by_mount8(program: str, arguments: Sequence[str], verbs: Collection[str]) -> bool:
    """Whether mount(8) or mount.fuse3 is the caller."""
    return program in HELPER_NAMES or _is_mount_fuse_call(arguments, verbs)


def status_for_mount8(code: object) -> int:
    """mount(8) exits with its helper's status, so the status is one that mount(8) documents (section EXIT STATUS)."""
    if not code:
        return 0
    return _MOUNT8_WRONG_CALL if code in _WRONG_CALL else _MOUNT8_FAILED


def translate(program: str, arguments: Sequence[str], verbs: Collection[str]) -> list[str]:
    """The arguments for `pinfs`, whatever the name and form of the call."""
    if program in HELPER_NAMES:
        return _as_mount(arguments)
    if _is_mount_fuse_call(arguments, verbs):
        return ["mount", *arguments, "--daemon"]
    return list(arguments)


def _is_mount_fuse_call(arguments: Sequence[str], verbs: Collection[str]) -> bool:
    return len(arguments) >= 2 and arguments[0] not in verbs and arguments[0].startswith("/")


def _as_mount(arguments: Sequence[str]) -> list[str]:
    result = ["mount", "--daemon"]
    rest = iter(arguments)
    for argument in rest:
        if len(argument) < 2 or argument[0] != "-" or argument.startswith("--"):
            result.append(argument)
        else:
            result += _flags(argument[1:], rest)
    return result


def _flags(letters: str, rest: Iterator[str]) -> list[str]:
    """One cluster of short options, such as `-nv` or `-oro`; an option's value may be the next argument."""
    result: list[str] = []
    for position, letter in enumerate(letters):
        if letter in _WITH_ARGUMENT:
            value = letters[position + 1 :] or next(rest, "")
            return [*result, "-o", value] if letter == "o" else result
        result += _FLAGS.get(letter, [f"-{letter}"])
    return result
