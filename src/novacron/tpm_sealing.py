"""A secret that only this host's TPM gives out: sealed under its owner hierarchy, with the commands of tpm2-tools."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
import tempfile
from pathlib import Path

from novacron import child_environment
from novacron.model.errors import Unavailable

STEP_S_MAX = 30.0
"""A TPM may need seconds for a key, and serves others, too."""
SECRET_BYTES_MAX = 128
"""TCG TPM 2.0 Library, part 2: MAX_SYM_DATA."""
ERROR_CHARS_MAX = 300
PACKAGE = "apt-get install tpm2-tools"
VARIABLES = "TPM2TOOLS_"
"""Say which TPM is used, for example TPM2TOOLS_TCTI."""


def seal(secret: bytes) -> bytes:
    """Return what ``unseal`` on this host needs for ``secret``, as JSON: the public and the private part of the
    object, as TPM2B structures in base64. Raises ValueError, Unavailable.
    """
    if not 0 < len(secret) <= SECRET_BYTES_MAX:
        raise ValueError(f"a TPM seals 1 to {SECRET_BYTES_MAX} bytes, not {len(secret)}")
    with tempfile.TemporaryDirectory(prefix="novacron-tpm-") as name:
        place = Path(name)
        _primary(place)
        _tool(place, "tpm2_create", "-Q", "-C", "primary", "-i", "-", "-u", "public", "-r", "private", given=secret)
        parts = {part: base64.b64encode((place / part).read_bytes()).decode() for part in ("public", "private")}
    return json.dumps(parts).encode() + b"\n"


def unseal(sealed: bytes) -> bytes:
    """Return the secret. Raises ValueError for what ``seal`` did not make, Unavailable if the TPM refuses it."""
    try:
        parts = json.loads(sealed)
        decoded = {part: base64.b64decode(parts[part], validate=True) for part in ("public", "private")}
    except (ValueError, TypeError, KeyError, binascii.Error):
        raise ValueError("not a secret sealed by a TPM") from None
    with tempfile.TemporaryDirectory(prefix="novacron-tpm-") as name:
        place = Path(name)
        for part, content in decoded.items():
            (place / part).write_bytes(content)
        _primary(place)
        _tool(place, "tpm2_load", "-Q", "-C", "primary", "-u", "public", "-r", "private", "-c", "object")
        _make_room(place)
        return _tool(place, "tpm2_unseal", "-c", "object")


def _primary(place: Path) -> None:
    """Make the storage key, which is the same each time for as long as the TPM is not cleared."""
    _tool(place, "tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "primary")
    _make_room(place)


def _make_room(place: Path) -> None:
    """Free the TPM's few places for objects, whose contexts are in files; with a resource manager these are ours."""
    _tool(place, "tpm2_flushcontext", "-t")


def _tool(place: Path, *command: str, given: bytes = b"") -> bytes:
    """Run a command in a folder, and return its output. Raises Unavailable."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, cwd=place, timeout=STEP_S_MAX, check=False,
            env=child_environment.clean(prefix=VARIABLES),
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f"the TPM can't be asked: {command[0]} is not installed", hint=PACKAGE) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the TPM can't be asked: {error}") from None
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()[-ERROR_CHARS_MAX:]
        raise Unavailable(
            f"the TPM refused {command[0]}: {message}",
            hint="only the TPM that sealed a key unseals it, until it is cleared, for users who may open /dev/tpmrm0",
        )
    return done.stdout
