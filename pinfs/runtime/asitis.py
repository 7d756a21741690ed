"""For `with` where nothing is to be done."""

from typing import Final


class AsItIs:
    """contextlib.nullcontext, which is two calls of the interpreter wherever this is compiled."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


AS_IT_IS: Final = AsItIs()
