"""Indexes that touch fewer pages with each call: only what is out or orphaned, and none beside the primary key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A call's id begins with its request's, so that the primary key finds a request's calls too."""
    op.drop_index("calls_by_request", "calls")
    op.drop_index("calls_open", "calls")
    for name, state in (("calls_open", "dispatched"), ("calls_orphaned", "orphaned")):
        where = sa.text(f"state = '{state}'")
        op.create_index(name, "calls", ["node"], unique=False, sqlite_where=where, postgresql_where=where)
