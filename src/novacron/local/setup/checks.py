"""What keeps a host from being set up: the doctor's findings, and what only matters before a service runs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from novacron.extras import Extra
from novacron.local import doctor
from novacron.local.doctor import machine
from novacron.local.setup.host import missing_programs
from novacron.service_options import STATE_DIR

SYSTEMD = Path("/run/systemd/system")
"""There while systemd runs (sd_booted(3))."""
CONNECT_S = 5.0
RUN = Path("/run")
"""Where what is gone with the next start of the host is."""


class Checked(NamedTuple):
    """What was found: problems are in the way, warnings are not."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def of_machine() -> list[str]:
    """Return what this machine lacks for any set-up."""
    problems = []
    if os.geteuid() != 0:
        problems.append("only root can set up a host: run it again as root")
    if not SYSTEMD.is_dir():
        problems.append(
            "systemd does not run here: start server and agent as described in docs/how-to/several-hosts.md"
        )
    problems += [f"there is no {name} on this host" for name in missing_programs()]
    return problems


def of_service(extra: Extra, database: str | None) -> Checked:
    """Look at this host as the doctor does for a part of NovaCron, and at a database if a URL is given."""
    subject = doctor.Subject(STATE_DIR, database, parts=frozenset({extra}), platform=False)
    findings = asyncio.run(doctor.examine(subject))
    return Checked(
        tuple(_in_words(finding) for finding in findings if finding.grade is doctor.Grade.BAD),
        tuple(_in_words(finding) for finding in findings if finding.grade is doctor.Grade.WARNING),
    )


def _in_words(finding: doctor.Finding) -> str:
    return f"{finding.about}: {finding.found}; {finding.advice}"


def used_ports(host: str, ports: Mapping[str, int], own: Iterable[int]) -> Iterator[str]:
    """Yield which ports can't be listened at, by their settings; ``own``: those that the service has itself by now."""
    for name, port in ports.items():
        if port not in set(own):
            objection = machine.port_objection(host, port)
            if objection:
                yield (
                    f"can't listen on {host}:{port}: {objection}; see what uses it with ss -ltnp, or set another {name}"
                )


def unreachable(urls: Iterable[str]) -> Iterator[str]:
    """Yield which of an installation's addresses this host does not reach."""
    for url in urls:
        host, port = endpoint(url)
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            yield f"can't reach {host}:{port}: {why}; check name, route and firewall, and that the server runs"


def endpoint(url: str) -> tuple[str, int]:
    """Return host and port of a URL; no host is reached by a URL that has none."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or 443
    except ValueError:
        return "", 0


def own_address(url: str) -> str | None:
    """Return the address from which this host reaches another, where others reach it; None: that host is this one."""
    host, port = endpoint(url)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect(address)  # sends nothing
            own: str = route.getsockname()[0]
    except (OSError, OverflowError, UnicodeError):
        return None
    return None if own.startswith("127.") or own == "::1" or own == address[0] else own
