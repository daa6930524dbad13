"""The platform's keys, by generation, and what each server has taken over of them."""

from __future__ import annotations

from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE platform_keys (name text NOT NULL, generation int NOT NULL, sealed bytea NOT NULL,"
        " certificate text NOT NULL DEFAULT '', mark text NOT NULL DEFAULT '',"
        " created_at timestamptz NOT NULL DEFAULT now(), used_from timestamptz, retired_at timestamptz,"
        " PRIMARY KEY (name, generation))"
    )
    op.execute("CREATE TABLE key_seals (mark text PRIMARY KEY, sealed bytea NOT NULL)")
    op.execute(
        "CREATE TABLE server_keys (server text PRIMARY KEY, trusts text[] NOT NULL, authority text NOT NULL,"
        " seal text NOT NULL, seen_at timestamptz NOT NULL DEFAULT now())"
    )
