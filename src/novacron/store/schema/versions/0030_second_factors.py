"""Second factors, recovery codes, and logins that wait for a second factor."""

from __future__ import annotations

from alembic import op

revision = "0030"
down_revision = "0029"

STATEMENTS = (
    "ALTER TABLE users ADD COLUMN second_factor_required boolean NOT NULL DEFAULT false",
    'CREATE TABLE second_factors (id text PRIMARY KEY, "user" text NOT NULL REFERENCES users ON DELETE CASCADE,'
    " kind text NOT NULL, name text NOT NULL, secret bytea NOT NULL, credential bytea UNIQUE,"
    " counter bigint NOT NULL DEFAULT 0, confirmed boolean NOT NULL DEFAULT false,"
    ' created_at timestamptz NOT NULL DEFAULT now(), used_at timestamptz, UNIQUE ("user", name))',
    'CREATE TABLE recovery_codes ("user" text NOT NULL REFERENCES users ON DELETE CASCADE, hash bytea NOT NULL,'
    ' PRIMARY KEY ("user", hash))',
    'CREATE TABLE login_steps (hash bytea PRIMARY KEY, "user" text NOT NULL REFERENCES users ON DELETE CASCADE,'
    " challenge bytea NOT NULL, tries int NOT NULL DEFAULT 0, expires_at timestamptz NOT NULL)",
    "CREATE INDEX login_steps_expiry ON login_steps (expires_at)",
    'CREATE INDEX login_steps_user ON login_steps ("user")',
    'CREATE TABLE second_factor_failures ("user" text PRIMARY KEY REFERENCES users ON DELETE CASCADE,'
    " count int NOT NULL)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
