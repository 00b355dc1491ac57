"""For tests that are not about waiting: a ledger that is given as long as a busy machine takes."""

from __future__ import annotations

import pytest

from node.store import database as databases
from node.store import ledger as ledgers


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Wait a minute for a commit, and for whoever else writes."""
    patch.setattr(ledgers, "_PATIENCE_S", 60.0)
    patch.setattr(databases, "_BUSY_S", 60.0)
