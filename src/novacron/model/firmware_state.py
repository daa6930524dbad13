"""What a VM keeps between its boots beside its disks: UEFI's variables, and what its TPM remembers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.limits import FIRMWARE_STATE_BYTES_MAX

Packed = Annotated[bytes, Meta(max_length=FIRMWARE_STATE_BYTES_MAX)]
"""A file, compressed with zlib; base64 in JSON."""


class FirmwareState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With it a new VM is what an exported one was. It is secret: keys in a TPM may open the disk."""

    nvram: Packed | None = None
    tpm: Packed | None = None
