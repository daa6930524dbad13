"""Have this host's TPM seal the platform key (``novacron server seal-platform-key``)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from novacron import private_file, tpm_sealing
from novacron.model.errors import Conflict, Unavailable
from novacron.platform_key import KeyFile


def seal(key: Path, into: Path) -> str:
    """Seal the platform key in the file ``key``, and return its id, once the result has been tried.

    Raises Conflict, Unavailable, OSError.
    """
    if into.exists():
        raise Conflict(f"{into} exists: a sealed key is not overwritten", hint="name another file")
    file = KeyFile(key)
    secret = file.read()
    sealed = tpm_sealing.seal(secret)
    if tpm_sealing.unseal(sealed) != secret:
        raise Unavailable("the TPM does not unseal what it has sealed: nothing was written")
    private_file.write(into, sealed)
    return asyncio.run(file.id())
