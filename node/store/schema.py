"""The tables of the node's database, for SQLite and PostgreSQL alike.

Money is in integer nano-dollars, moments are UTC microseconds since 1970. `spend` is kept by triggers of the database
itself from the rows of `calls`, in the same transaction, whoever writes them: nothing in Python adds up money.
Changes go through `node/store/migrations`.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, MetaData, String, Table, Text, text


class State(StrEnum):
    """Where an attempt stands. What it counts for (`charged_nano_usd`) follows from it.

    `DISPATCHED`: reserved and out, which is one commit, because nothing happens between the two; counts for the worst
    case. `SETTLED`: what it really cost. `RELEASED`: nothing, it was refused by the provider or never sent. `ORPHANED`:
    the node died while it was out, so nobody here knows, and it counts for the worst case until it is reconciled.
    """

    DISPATCHED = "dispatched"
    SETTLED = "settled"
    RELEASED = "released"
    ORPHANED = "orphaned"


class AuditEvent(StrEnum):
    """What an audit row says: something was let out, or was refused to leave."""

    LET_OUT = "let_out"
    REFUSED = "refused"


metadata = MetaData()
# Written out, not bound: only so does a database see that an index which has it serves a query which has it.
IS_OUT = text("state = 'dispatched'")
IS_ORPHANED = text("state = 'orphaned'")

calls = Table(
    "calls",
    metadata,
    Column("id", String(48), primary_key=True, doc="<request id>.<number of the attempt>"),
    Column("request_id", String(32), nullable=False),
    Column("parent_id", String(48), doc="the attempt that this one retries or hedges"),
    Column("node", String(32), nullable=False, doc="which node wrote it: only that one recovers it"),
    Column("caller", String(64), nullable=False, doc="the key's name"),
    Column("backend", String(64), nullable=False, doc="local, cache, or the provider's name"),
    Column("model", Text, nullable=False, doc="the catalogue name that was asked for"),
    Column("served_model", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(12), nullable=False),
    Column("rule", String(32), nullable=False, doc="the reason of the decision"),
    Column(
        "at_us",
        BigInteger,
        nullable=False,
        doc="when it was reserved; never before an earlier one's",
    ),
    Column("hour", Integer, nullable=False, doc="at_us in whole hours since 1970: what windows are made of"),
    Column("ended_us", BigInteger),
    Column("reserved_nano_usd", BigInteger, nullable=False),
    Column("charged_nano_usd", BigInteger, nullable=False, doc="what counts for budgets and bills"),
    Column("billed_nano_usd", BigInteger, doc="by the provider's statement, once reconciled"),
    Column("list_nano_usd", BigInteger, doc="the same tokens at the model's list price"),
    Column("cloud_nano_usd", BigInteger, doc="the same tokens at its first cloud equivalent's price"),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("estimated", Boolean, nullable=False, doc="tokens were counted here, not reported"),
    Column("usage_suspect", Boolean, nullable=False, doc="what was reported could not be believed"),
    Column("ending", String(16), doc="null while it is out"),
    Column("error_code", String(64)),
    Column("may_leave", Boolean, nullable=False),
    Column("prompt_bytes", BigInteger, nullable=False),
    Column("max_output_tokens", BigInteger, nullable=False),
    Column("ttft_budget_us", BigInteger, nullable=False),
    Column("queue_us", BigInteger),
    Column("ttft_us", BigInteger, doc="from arrival to first content; null where nothing was streamed"),
    Column("total_us", BigInteger, doc="from arrival to the end"),
    CheckConstraint("reserved_nano_usd >= 0 AND charged_nano_usd >= 0", name="calls_money_not_negative"),
    Index("calls_by_hour", "hour", "caller"),
    # Of those that are out, or orphaned, only: the conditions are in the migration, for either database.
    Index("calls_open", "node"),
    Index("calls_orphaned", "node"),
)

spend = Table(
    "spend",
    metadata,
    Column("caller", String(64), primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("nano_usd", BigInteger, nullable=False),
    Index("spend_by_hour", "hour"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True, doc="the first characters of the key, for lists and logs"),
    Column("name", String(64), nullable=False, doc="the caller: two rows share it while a key is rotated"),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("residency", String(16), nullable=False),
    Column("models", Text, doc="JSON list of catalogue names; null: all"),
    Column("hour_nano_usd", BigInteger, doc="budgets; null: no limit"),
    Column("day_nano_usd", BigInteger),
    Column("month_nano_usd", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("priority", Integer, nullable=False, doc="higher goes first among those who wait"),
    Column("ttft_budget_ms", BigInteger),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, doc="no longer good from then on: revoked, or replaced"),
    Index("keys_by_name", "name"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False, doc="1, 2, 3 … without a gap"),
    Column("at_us", BigInteger, nullable=False),
    Column("node", String(32), nullable=False),
    Column("event", String(12), nullable=False),
    Column("request_id", String(32), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("residency", String(16), nullable=False),
    Column("rule", String(32), nullable=False, doc="why it was let out, or what refused it"),
    Column("provider", String(64)),
    Column("model", Text),
    Column("prompt_bytes", BigInteger, nullable=False),
    Column("reserved_nano_usd", BigInteger),
    Column("hash", String(64), nullable=False, doc="SHA-256 over the row before's hash and this row"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
)
