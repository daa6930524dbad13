"""Migrations: the source's side, the target's side, and what they share."""
