"""Sums over the beginning of a list whose numbers keep changing: a Fenwick tree."""

from __future__ import annotations

from collections.abc import Sequence

Three = tuple[int, int, int]


class RunningSums:
    """Rows of three numbers and their running sums: changing one of n rows, or adding up the first few, takes log n."""

    def __init__(self, rows: Sequence[Three]) -> None:
        self._trees = tuple(_tree([row[column] for row in rows]) for column in range(3))

    def add(self, index: int, change: Three) -> None:
        """Add `change` to the row at `index`."""
        first, second, third = self._trees
        x, y, z = change
        index += 1
        while index < len(first):
            first[index] += x
            second[index] += y
            third[index] += z
            index += index & -index

    def before(self, index: int) -> Three:
        """What the rows before `index` come to."""
        first, second, third = self._trees
        x = y = z = 0
        while index:
            x += first[index]
            y += second[index]
            z += third[index]
            index &= index - 1
        return x, y, z


def _tree(values: Sequence[int]) -> list[int]:
    """At `i`, from 1 on, the sum of as many values up to the `i`-th as the lowest bit of `i` says."""
    tree = [0, *values]
    for index in range(1, len(tree)):
        above = index + (index & -index)
        if above < len(tree):
            tree[above] += tree[index]
    return tree
