"""Everything on one machine: embedded PostgreSQL, server and agent in one command."""
