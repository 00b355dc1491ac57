"""Sums over the beginning of a list whose numbers keep changing: a Fenwick tree."""

from __future__ import annotations

from collections.abc import Sequence


class RunningSums:
    """Numbers whose running sums are wanted: changing one of n and adding up the first few both take log n steps."""

    def __init__(self, values: Sequence[int]) -> None:
        tree = [0, *values]
        for index in range(1, len(tree)):
            above = index + (index & -index)
            if above < len(tree):
                tree[above] += tree[index]
        self._tree = tree

    def add(self, index: int, change: int) -> None:
        """Add `change` to the number at `index`."""
        tree, index = self._tree, index + 1
        while index < len(tree):
            tree[index] += change
            index += index & -index

    def before(self, index: int) -> int:
        """What the numbers before `index` come to."""
        tree, total = self._tree, 0
        while index:
            total += tree[index]
            index &= index - 1
        return total
