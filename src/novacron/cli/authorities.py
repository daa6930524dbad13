"""Contexts take over which authorities their server wants to be trusted, while they can still verify it."""

from __future__ import annotations

import contextlib
import re

from novacron import context_file
from novacron.client import Client
from novacron.client.config import Config, config_path, context_name, load_config
from novacron.client.errors import ApiError, Unreachable
from novacron.client.protocol import served_authorities
from novacron.context_file import SettingsError

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def trust(name: str) -> str:
    """Let a context trust what its server wants to be trusted, and return that (PEM).

    Raises SettingsError, ApiError, Unreachable, OSError.
    """
    context = context_file.read(config_path()).get(name)
    with Client(Config(context.url, context.token, context.ca)) as client:
        ca = client.authority()
    with context_file.changing(config_path()) as contexts:
        contexts.replace(name, contexts.get(name)._replace(ca=ca, authorities=served_authorities.get(context.url, "")))
    return ca


def follow() -> None:
    """After a command: let the context that it used trust other authorities if its server has said that there are.

    Only one that trusts one of them already does so by itself: another one may verify a proxy.
    """
    if not served_authorities:
        return
    with contextlib.suppress(SettingsError, ApiError, Unreachable, OSError):  # the command has done what it was to do
        name, used = context_name(), load_config()
        context = context_file.read(config_path()).get(name) if name else None
        said = served_authorities.get(used.url, "")
        if context is None or not context.ca or not said or context.authorities == said or context.url != used.url:
            return
        with Client(used) as client:
            ca = client.authority()
        known = set(CERTIFICATE.findall(context.ca)) & set(CERTIFICATE.findall(ca))
        with context_file.changing(config_path()) as contexts:
            present = contexts.get(name)
            contexts.replace(name, present._replace(ca=ca if known else present.ca, authorities=said))
