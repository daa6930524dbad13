"""The tables, as Alembic migrations."""
