"""``novacron support-bundle``: what a maintainer needs, in one file that only its owner may read, without secrets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from novacron import __version__, child_environment
from novacron.client.api import Client, load_config
from novacron.client.errors import ApiError, Unreachable
from novacron.local import doctor
from novacron.telemetry.logs import HIDDEN, SECRET_NAMES, redacted

LOG_BYTES = 4 << 20
"""Of the end of each log."""
OBJECTS_MAX = 5000
EVENTS_MAX = 500
NODES_MAX = 100
FILES_MAX = 5000
UNITS = ("novacron-server", "novacron-agent", "novacron")
KINDS = ("nodes", "vms", "migrations", "drains", "volumes", "networks", "links", "imports", "exports")
HIDDEN_FIELDS = ("seed", "user_data", "hash")
"""First-boot data of guests may hold passwords."""
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")

Part = tuple[str, str]


def write(target: Path | None, state_dir: Path, logs: Iterable[Path]) -> tuple[Path, list[tuple[str, int]]]:
    """Write the bundle; return its path and its parts. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = target or Path(f"novacron-support-{stamp}.tar.gz")
    kept = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in _parts(state_dir, logs):
                data = clean(text).encode(errors="replace")
                entry = tarfile.TarInfo(f"novacron-support-{stamp}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))
                kept.append((name, len(data)))
    except BaseException:  # a full disk or an interrupt: half a bundle is of no use
        path.unlink(missing_ok=True)
        raise
    return path, kept


def clean(text: str) -> str:
    """Return a text without secrets and addresses of people."""
    return EMAIL.sub(HIDDEN, redacted(text))


def without_secrets(value: object) -> object:
    """Return what the API answered without fields that hold, or may hold, secrets: what guests begin with, too."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if item and (key in HIDDEN_FIELDS or SECRET_NAMES.search(key)) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return value


def _parts(state_dir: Path, logs: Iterable[Path]) -> Iterator[Part]:
    yield "versions.json", _json(
        {"novacron": __version__, "python": platform.python_version(), "kernel": platform.release(),
         "system": _first("/etc/os-release"), "machine": platform.machine(), "cpus": os.cpu_count()}
    )  # fmt: skip
    yield "doctor.json", _tried(lambda: _json([msgspec.to_builtins(finding) for finding in asyncio.run(
        doctor.examine(doctor.Subject(state_dir)))]))  # fmt: skip
    yield "files.txt", _tried(lambda: _files(state_dir))
    yield "processes.txt", _run("ps", "-eo", "pid,ppid,rss,etimes,stat,comm")
    yield "interfaces.txt", _run("ip", "-brief", "address")
    yield from _platform()
    for path in logs:
        yield f"logs/{path.name}", _tried(lambda path=path: _tail(path))  # type: ignore[misc]
    for unit in UNITS:
        text = _run("journalctl", "-u", unit, "-n", "5000", "--no-pager", "-o", "cat")
        if text.strip() and "No entries" not in text:
            yield f"logs/{unit}.log", text[-LOG_BYTES:]
    for path in sorted((state_dir / "agent/vms").glob("*/qemu.log"))[:NODES_MAX]:
        yield f"logs/qemu/{path.parent.name}.log", _tried(lambda path=path: _tail(path))  # type: ignore[misc]


def _platform() -> Iterator[Part]:
    try:
        client = Client(load_config())
        ready, why = client.ready()
    except Unreachable as error:
        yield "platform.txt", f"no server was reached: {error}\n"
        return
    yield "platform.txt", f"{client.config.url}: {'ready' if ready else why}\n"
    for kind in KINDS:
        yield f"api/{kind}.json", _tried(lambda kind=kind: _json(without_secrets(_some(client, kind))))  # type: ignore[misc]
    path = f"/api/v1/events?limit={EVENTS_MAX}"
    yield "api/events.json", _tried(lambda: _json(without_secrets(client.request("GET", path))))
    yield (
        "api/failed-calls.json",
        _tried(lambda: _json(without_secrets(client.request("GET", "/api/v1/api-log?errors=true&limit=500")))),
    )
    yield "metrics/server.txt", _tried(client.metrics)
    nodes = [node["name"] for node in _some(client, "nodes")] if ready else []
    for node in nodes[:NODES_MAX]:
        yield f"metrics/node-{node}.txt", _tried(lambda node=node: client.metrics(node))  # type: ignore[misc]


def _some(client: Client, kind: str) -> list[Any]:
    objects = []
    for item in client.list(kind):
        objects.append(item)
        if len(objects) >= OBJECTS_MAX:
            break
    return objects


def _json(value: object) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


def _tried(get: Callable[[], str]) -> str:
    """Return a part, or why it could not be collected: the others are still worth having."""
    try:
        return get()
    except (ApiError, Unreachable, OSError, ValueError) as error:
        return f"could not be collected: {error}\n"


def _run(*arguments: str) -> str:
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            errors="replace",
            env=child_environment.clean(),
        )
        return done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"could not be collected: {error}\n"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read(LOG_BYTES).decode(errors="replace")


def _first(path: str) -> str:
    try:
        return Path(path).read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""


def _files(directory: Path) -> str:
    """List what lies in the state directory, with sizes: not what is in it."""
    lines = []
    for path in sorted(directory.rglob("*"))[:FILES_MAX]:
        try:
            lines.append(
                f"{path.lstat().st_mode & 0o7777:04o} {path.lstat().st_size:>14} {path.relative_to(directory)}"
            )
        except OSError:
            continue
    return "\n".join(lines) + "\n"
