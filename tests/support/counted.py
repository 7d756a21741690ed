"""How much work a search is, in comparisons: what no clock and no busy machine disturbs."""


class Counted(int):
    """A bound of a range that counts how often any of its kind is compared."""

    comparisons = 0

    def _count(self) -> int:
        Counted.comparisons += 1
        return int(self)

    def __lt__(self, other: int) -> bool:
        return self._count() < int(other)

    def __gt__(self, other: int) -> bool:
        return self._count() > int(other)

    def __ge__(self, other: int) -> bool:
        return self._count() >= int(other)

    def __le__(self, other: int) -> bool:
        return self._count() <= int(other)
