"""Runbooks that are run: pages of procedures whose fenced blocks are steps (docs/reference/runbook-format.md)."""
