"""Calls, spending by hour, keys, the audit chain, secrets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# A row that begins to count, or counts for another amount from now on.
_SQLITE = (
    """
    CREATE TRIGGER calls_spend_insert AFTER INSERT ON calls WHEN NEW.charged_nano_usd <> 0 BEGIN
        INSERT INTO spend (caller, hour, nano_usd) VALUES (NEW.caller, NEW.hour, NEW.charged_nano_usd)
        ON CONFLICT (caller, hour) DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd;
    END
    """,
    """
    CREATE TRIGGER calls_spend_update AFTER UPDATE OF charged_nano_usd ON calls
    WHEN NEW.charged_nano_usd <> OLD.charged_nano_usd BEGIN
        INSERT INTO spend (caller, hour, nano_usd)
        VALUES (NEW.caller, NEW.hour, NEW.charged_nano_usd - OLD.charged_nano_usd)
        ON CONFLICT (caller, hour) DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd;
    END
    """,
    """
    CREATE TRIGGER calls_stay BEFORE DELETE ON calls BEGIN
        SELECT RAISE(ABORT, 'calls are not deleted');
    END
    """,
    """
    CREATE TRIGGER calls_keep_owner BEFORE UPDATE OF id, caller, hour, at_us ON calls BEGIN
        SELECT RAISE(ABORT, 'whose call it was, and when, does not change');
    END
    """,
    """
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit BEGIN
        SELECT RAISE(ABORT, 'the audit chain is only appended to');
    END
    """,
    """
    CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit BEGIN
        SELECT RAISE(ABORT, 'the audit chain is only appended to');
    END
    """,
)

_POSTGRESQL = (
    """
    CREATE FUNCTION calls_spend() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE before bigint := 0;
    BEGIN
        IF TG_OP = 'UPDATE' THEN before := OLD.charged_nano_usd; END IF;
        IF NEW.charged_nano_usd <> before THEN
            INSERT INTO spend (caller, hour, nano_usd) VALUES (NEW.caller, NEW.hour, NEW.charged_nano_usd - before)
            ON CONFLICT (caller, hour) DO UPDATE SET nano_usd = spend.nano_usd + excluded.nano_usd;
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER calls_spend AFTER INSERT OR UPDATE OF charged_nano_usd ON calls
    FOR EACH ROW EXECUTE FUNCTION calls_spend()
    """,
    """
    CREATE FUNCTION spillway_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '%', TG_ARGV[0];
    END $$
    """,
    """
    CREATE TRIGGER calls_stay BEFORE DELETE ON calls
    FOR EACH ROW EXECUTE FUNCTION spillway_refuse('calls are not deleted')
    """,
    """
    CREATE TRIGGER calls_keep_owner BEFORE UPDATE OF id, caller, hour, at_us ON calls
    FOR EACH ROW EXECUTE FUNCTION spillway_refuse('whose call it was, and when, does not change')
    """,
    """
    CREATE TRIGGER audit_stays BEFORE DELETE OR UPDATE ON audit
    FOR EACH ROW EXECUTE FUNCTION spillway_refuse('the audit chain is only appended to')
    """,
)


def upgrade() -> None:
    """Make everything."""
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(length=32), nullable=False),
        sa.Column("event", sa.String(length=12), nullable=False),
        sa.Column("request_id", sa.String(length=32), nullable=False),
        sa.Column("caller", sa.String(length=64), nullable=False),
        sa.Column("residency", sa.String(length=16), nullable=False),
        sa.Column("rule", sa.String(length=32), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("prompt_bytes", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("request_id", sa.String(length=32), nullable=False),
        sa.Column("parent_id", sa.String(length=48), nullable=True),
        sa.Column("node", sa.String(length=32), nullable=False),
        sa.Column("caller", sa.String(length=64), nullable=False),
        sa.Column("backend", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("served_model", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("rule", sa.String(length=32), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("reserved_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("charged_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("billed_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("list_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("cloud_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=True),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=True),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("usage_suspect", sa.Boolean(), nullable=False),
        sa.Column("ending", sa.String(length=16), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("may_leave", sa.Boolean(), nullable=False),
        sa.Column("prompt_bytes", sa.BigInteger(), nullable=False),
        sa.Column("max_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("ttft_budget_us", sa.BigInteger(), nullable=False),
        sa.Column("queue_us", sa.BigInteger(), nullable=True),
        sa.Column("ttft_us", sa.BigInteger(), nullable=True),
        sa.Column("total_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("reserved_nano_usd >= 0 AND charged_nano_usd >= 0", name="calls_money_not_negative"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("calls_by_hour", "calls", ["hour", "caller"], unique=False)
    op.create_index("calls_by_request", "calls", ["request_id"], unique=False)
    op.create_index("calls_open", "calls", ["node", "state"], unique=False)
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("residency", sa.String(length=16), nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("hour_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("day_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("month_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("ttft_budget_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_index("keys_by_name", "keys", ["name"], unique=False)
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "spend",
        sa.Column("caller", sa.String(length=64), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "hour"),
    )
    op.create_index("spend_by_hour", "spend", ["hour"], unique=False)
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
