"""Attacks as a tenant, a stranger or a browser would try them, kept as tests."""
