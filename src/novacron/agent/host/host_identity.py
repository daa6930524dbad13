"""Whose host a state folder belongs to: a copy of it on another host must not run the same VMs a second time.

``presence`` and ``leftovers`` keep two agents of a node apart on one host. On another host nothing of them can be seen,
so the folder remembers which host it is on.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

import msgspec

from novacron import private_file
from novacron.model.errors import MALFORMED, InvalidInput
from novacron.telemetry import logs

log = logs.get(__name__)

MACHINE_ID = Path("/etc/machine-id")
PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")
SALT = b"novacron host identity 1\0"
"""machine-id(5) asks programs not to show the id itself."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
NO_UUIDS = frozenset(("03000200-0400-0500-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc"))
"""What boards say whose maker has given them none, beside one digit repeated."""


class HostIdentity(msgspec.Struct, frozen=True):
    """What tells a host from others. Empty: that is not known of it."""

    hardware: str = ""
    """Digest of the id that the firmware has (SMBIOS): it outlives a new installation of the system."""
    system: str = ""
    """Digest of the id that the installation of the operating system has."""

    def same(self, other: HostIdentity) -> bool:
        """Say whether both are one host, or can't be told apart."""
        if self.hardware and other.hardware:
            return self.hardware == other.hardware
        return not (self.system and other.system) or self.system == other.system


def of_this_host() -> HostIdentity:
    """Return this host's identity, as far as this process may read it."""
    hardware = _read(PRODUCT_UUID)
    if not UUID.match(hardware) or hardware in NO_UUIDS or len(set(hardware.replace("-", ""))) == 1:
        hardware = ""
    return HostIdentity(_digest(hardware), _digest(_read(MACHINE_ID)))


def _read(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip().lower()
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(SALT + text.encode()).hexdigest()[:32] if text else ""


def _remembered(path: Path) -> HostIdentity | None:
    """Return whose host the folder belongs to; None if nobody has noted it. Raises InvalidInput."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=HostIdentity)
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as error:
        raise InvalidInput(
            f"{path} can't be read: {error}",
            field="state-dir",
            hint="if this state folder was always on this host: novacron agent --state-moved",
        ) from error


def check(path: Path) -> None:
    """Make sure that a state folder is on the host on which it was made; ``path`` is where it remembers that.

    Raises InvalidInput.
    """
    remembered, here = _remembered(path), of_this_host()
    if remembered is None:
        _note_if_possible(path)
    elif not remembered.same(here):
        raise InvalidInput(
            f"the state folder {path.parent} comes from another host, which may run the same VMs",
            field="state-dir",
            hint="if that host is off for good, or this is the same host with a new mainboard: novacron agent"
            " --state-moved; if this is a copy, remove it, and join this host under its own name",
        )
    elif remembered != here and (here.hardware or not remembered.hardware):
        _note_if_possible(path)  # it was installed anew, or more can be read of it now


def note(path: Path) -> None:
    """Let a state folder belong to this host from now on. Raises OSError."""
    private_file.write(path, msgspec.json.encode(of_this_host()))


def _note_if_possible(path: Path) -> None:
    try:
        note(path)
    except OSError as error:  # a full disk keeps no agent from looking after its VMs
        log.warning("the state folder can't note which host it is on", error=str(error))
