"""Whether budgets have room for what is about to leave: asked of the rows, in the transaction that writes it down."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from node.money import Budget
from node.store.driver import Statement, Transaction
from node.store.windows import windows

NODE = None
"""In place of a caller's name: all callers together."""

_BY_ALL: Final = Statement(text("SELECT sum(nano_usd) FROM spend WHERE hour >= :first_hour"))
_BY_ONE: Final = Statement(text("SELECT sum(nano_usd) FROM spend WHERE caller = :caller AND hour >= :first_hour"))


class Spent(Exception):
    """A window of a budget has no room. `caller` is None for the node's own budget."""

    def __init__(self, caller: str | None, window: str, limit_nano_usd: int) -> None:
        super().__init__(f"{caller or 'the node'}: {window}")
        self.caller = caller
        self.window = window
        self.limit_nano_usd = limit_nano_usd


class Room:
    """What is left of every window during one transaction, in which nobody else writes.

    Each window is summed once, however many attempts ask; what is admitted is taken off at once.
    """

    def __init__(self, transaction: Transaction, node_budget: Budget, hour: int) -> None:
        self._transaction = transaction
        self._node_budget = node_budget
        self._hour = hour
        self._spent: dict[tuple[str | None, int], int] = {}

    def take(self, caller: str, budget: Budget, nano_usd: int) -> None:
        """Make room for an attempt of `caller`'s. Raises `Spent` if any window has too little; then none is touched.

        Never shrunk to fit: what an attempt may cost at worst is there, or it does not go.
        """
        asked = [
            (scope, *window)
            for scope, limits in ((caller, budget), (NODE, self._node_budget))
            for window in windows(limits, self._hour)
        ]
        for scope, name, first_hour, limit_nano_usd in asked:
            if self.spent_since(scope, first_hour) + nano_usd > limit_nano_usd:
                raise Spent(scope, name, limit_nano_usd)
        for key in self._spent:
            if key[0] in (caller, NODE):
                self._spent[key] += nano_usd

    def spent_since(self, caller: str | None, first_hour: int) -> int:
        """What `caller` has spent since that hour, what is reserved included."""
        key = caller, first_hour
        known = self._spent.get(key)
        if known is None:
            if caller is NODE:
                found = _BY_ALL.first(self._transaction, first_hour=first_hour)
            else:
                found = _BY_ONE.first(self._transaction, caller=caller, first_hour=first_hour)
            known = self._spent[key] = int(found[0] or 0) if found else 0
        return known
