"""NovaCron: a distributed VM management platform."""

__version__ = "0.1.0"
