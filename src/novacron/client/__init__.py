"""The Python SDK: what the API offers, as functions."""

from novacron.client.api import Client, Config, load_config
from novacron.client.errors import ApiError, Unreachable

__all__ = ["ApiError", "Client", "Config", "Unreachable", "load_config"]
