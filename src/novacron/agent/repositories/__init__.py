"""Repositories of backups, as a node uses them: their directories, and what a backup is in them."""
