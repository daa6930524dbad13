"""Debian packages: a command line, a server and an agent, each with a Python environment of its own below ``/opt``."""
