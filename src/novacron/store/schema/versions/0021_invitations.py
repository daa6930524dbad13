"""Invitations, users' default projects, logins that have ended, and whose console tickets are."""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.execute("ALTER TABLE tickets ADD COLUMN token text")
    op.execute(
        "ALTER TABLE users ADD COLUMN default_project text"
        " REFERENCES projects (name) ON UPDATE CASCADE ON DELETE SET NULL"
    )
    op.execute("""
        CREATE TABLE invitations (
            id         text        PRIMARY KEY,
            -- Null: there is no such user, which whoever invites must not learn.
            "user"     text        REFERENCES users ON DELETE CASCADE,
            user_name  text        NOT NULL,
            project    text        NOT NULL REFERENCES projects (name) ON UPDATE CASCADE ON DELETE CASCADE,
            role       text        NOT NULL,
            inviter    text        NOT NULL REFERENCES users ON DELETE CASCADE,
            actor      text        NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            UNIQUE (user_name, project)
        )""")
    op.execute("CREATE TABLE ended_logins (hash bytea PRIMARY KEY, expires_at timestamptz NOT NULL)")
    op.execute('CREATE INDEX invitations_user ON invitations ("user")')
    op.execute("CREATE INDEX invitations_project ON invitations (project)")
