"""Network namespaces, one for each network on this host, and how to run code inside them. Needs CAP_SYS_ADMIN."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from novacron.net.tap import NetworkFailed

ROOT = Path("/run/netns")
"""Where ip-netns(8) looks for them, too."""
CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
MS_BIND = 4096

T = TypeVar("T")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _in_a_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own: its namespace ends with it."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again in the caller
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def within(name: str | None, work: Callable[[], T]) -> T:
    """Run ``work`` in a namespace, to which its sockets then belong for good. None: the current one.

    Raises NetworkFailed when there is no such namespace.
    """
    if name is None:
        return work()

    def inside() -> T:
        try:
            descriptor = os.open(ROOT / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkFailed(f"there is no network namespace {name}: {error.strerror}") from error
        try:
            _check(_libc().setns(descriptor, CLONE_NEWNET), f"can't enter {name}")
        except OSError as error:
            raise NetworkFailed(str(error)) from error
        finally:
            os.close(descriptor)
        return work()

    return _in_a_thread(inside)


def open_(name: str | None) -> int:
    """Return a namespace, open: None is that of this process. Raises NetworkFailed."""
    path = Path("/proc/self/ns/net") if name is None else ROOT / name
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkFailed(f"there is no network namespace {name or 'of this process'}: {error.strerror}") from error


def exists(name: str) -> bool:
    """Say whether a namespace is there: a name alone, left by a host that was cut off, is none."""
    path = ROOT / name
    return path.exists() and path.stat().st_dev != ROOT.stat().st_dev


def create(name: str) -> None:
    """Make a namespace unless it exists. Raises NetworkFailed."""
    if exists(name):
        return
    path = ROOT / name

    def make() -> None:
        _check(_libc().unshare(CLONE_NEWNET), "no new network namespace")
        source, target = b"/proc/thread-self/ns/net", os.fsencode(path)
        _check(_libc().mount(source, target, b"none", MS_BIND, None), f"can't name {name}")

    try:
        ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        _in_a_thread(make)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise NetworkFailed(f"can't make network namespace {name}: {error}") from error


def delete(name: str) -> None:
    """Remove a namespace, and with it all interfaces in it; one that does not exist is no error."""
    path = ROOT / name
    try:
        _check(_libc().umount2(os.fsencode(path), MNT_DETACH), f"can't remove {name}")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise NetworkFailed(str(error)) from error
    path.unlink(missing_ok=True)


def all(prefix: str) -> list[str]:
    """Return the names of all namespaces that begin with ``prefix``."""
    try:
        return sorted(entry.name for entry in ROOT.iterdir() if entry.name.startswith(prefix))
    except FileNotFoundError:
        return []
