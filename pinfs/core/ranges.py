"""Byte ranges that can be asked "what overlaps this?", in O(log n + hits).

An augmented treap: a binary search tree ordered by (start, key), a heap by random priority, and in each node the
largest end of its subtree. The priorities are random so that a user who chooses ranges cannot choose the tree's shape.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

END: Final = 2**63
"""Exclusive bound of "for ever": one more than the largest offset a file can have (loff_t), in bytes."""


class _Node:
    __slots__ = ("end", "key", "left", "max_end", "priority", "right", "start", "value")

    def __init__(self, start: int, end: int, key: int, value: Any, priority: float) -> None:
        self.start = start
        self.end = end
        self.key = key
        self.value = value
        self.priority = priority
        self.max_end = end
        self.left: _Node | None = None
        self.right: _Node | None = None

    def measure(self) -> int:
        """The largest end of this subtree, from the node's own end and its children's."""
        largest = self.end
        left, right = self.left, self.right
        if left is not None and left.max_end > largest:
            largest = left.max_end
        if right is not None and right.max_end > largest:
            largest = right.max_end
        return largest


class RangeTree:
    """Half-open ranges [start, end) in bytes, each with a value; `key` (unique) tells equal starts apart.

    Not generic, because an extension type cannot be."""

    __slots__ = ("_random", "_root", "_size")

    def __init__(self, seed: int | None = None) -> None:
        """`seed`: makes the shape reproducible, for tests only."""
        self._root: _Node | None = None
        self._size = 0
        self._random = random.random if seed is None else random.Random(seed).random

    def __len__(self) -> int:
        return self._size

    def insert(self, start: int, end: int, key: int, value: Any) -> None:
        """Add [start, end). The pair (start, key) must not be in the tree."""
        new = _Node(start, end, key, value, self._random())
        self._size += 1
        if self._root is None:  # most files have one pin at a time
            self._root = new
            return
        parent: _Node | None = None
        node: _Node | None = self._root
        goes_left = False
        while node is not None and node.priority >= new.priority:
            if node.max_end < end:
                node.max_end = end
            parent = node
            goes_left = start < node.start or (start == node.start and key < node.key)
            node = node.left if goes_left else node.right
        new.left, new.right = _split(node, start, key)
        new.max_end = new.measure()
        self._hang(parent, goes_left, new)

    def remove(self, start: int, key: int) -> None:
        """Take out the range that was inserted with this start and key. KeyError: there is none."""
        root = self._root
        if root is not None and root.start == start and root.key == key:
            self._size -= 1
            self._root = _merge(root.left, root.right)
            return
        path: list[_Node] = []
        node, goes_left = root, False
        while node is not None and (node.start != start or node.key != key):
            path.append(node)
            goes_left = start < node.start or (start == node.start and key < node.key)
            node = node.left if goes_left else node.right
        if node is None:
            raise KeyError((start, key))
        self._size -= 1
        self._hang(path[-1] if path else None, goes_left, _merge(node.left, node.right))
        _measure_up(path)

    def overlapping(self, start: int, end: int, after: tuple[int, int] | None = None) -> Iterator[Any]:
        """The values of all ranges that share a byte with [start, end), by rising start.

        `after`: only those behind this (start, key), which need not be in the tree any more. The tree must not change
        while the iterator is in use.
        """
        pending: list[_Node] = []
        node = self._root if start < end else None
        while True:
            while node is not None and node.max_end > start:
                if after is not None and (node.start, node.key) <= after:
                    node = node.right
                    continue
                pending.append(node)
                node = node.left
            if not pending:
                return
            node = pending.pop()
            if node.start >= end:
                return
            if node.end > start:
                yield node.value
            node = node.right

    def some(self, start: int, end: int, count: int) -> list[Any]:
        """The first `count` of `overlapping`."""
        root = self._root
        if root is None:
            return []
        if root.left is None and root.right is None:  # most files have one pin at a time
            return [root.value] if count > 0 and start < end and root.start < end and root.end > start else []
        return list(islice(self.overlapping(start, end), count))

    def first_overlap(self, start: int, end: int) -> Any:
        """The value of one range that shares a byte with [start, end), or None. O(log n) whatever the hits."""
        node = self._root if start < end else None
        while node is not None:
            if node.start < end and node.end > start:
                return node.value
            left = node.left
            # If the left subtree reaches beyond `start` and yet nothing there overlaps, it all begins at `end` or
            # later, and so does everything to the right of it.
            node = left if left is not None and left.max_end > start else node.right
        return None

    def any_overlap(self, start: int, end: int) -> bool:
        """Does any range share a byte with [start, end)? O(log n) whatever the number of hits."""
        return self.first_overlap(start, end) is not None

    def _hang(self, parent: _Node | None, left: bool, node: _Node | None) -> None:
        if parent is None:
            self._root = node
        elif left:
            parent.left = node
        else:
            parent.right = node


def _split(tree: _Node | None, start: int, key: int) -> tuple[_Node | None, _Node | None]:
    """Part a subtree into what goes before (start, key) and what goes after. As deep as the tree: some 2 ln n."""
    if tree is None:
        return None, None
    if start < tree.start or (start == tree.start and key < tree.key):
        low, tree.left = _split(tree.left, start, key)
        tree.max_end = tree.measure()
        return low, tree
    tree.right, high = _split(tree.right, start, key)
    tree.max_end = tree.measure()
    return tree, high


def _merge(low: _Node | None, high: _Node | None) -> _Node | None:
    """One subtree out of two, where everything in `low` goes before everything in `high`."""
    if low is None or high is None:
        return low if high is None else high
    if low.priority >= high.priority:
        low.right = _merge(low.right, high)
        low.max_end = low.measure()
        return low
    high.left = _merge(low, high.left)
    high.max_end = high.measure()
    return high


def _measure_up(path: list[_Node]) -> None:
    """After a removal: correct the largest ends from the bottom to the root, as far as they change."""
    for node in reversed(path):
        largest = node.measure()
        if largest == node.max_end:
            return
        node.max_end = largest
