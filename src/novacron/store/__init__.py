"""Where it is kept: tables, migrations, queries, the change feed. PostgreSQL 15 or later is the truth."""
