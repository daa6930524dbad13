"""What a VM keeps between boots besides its disks: UEFI variables and the state of its TPM."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.limits import FIRMWARE_STATE_BYTES_MAX

Packed = Annotated[bytes, Meta(max_length=FIRMWARE_STATE_BYTES_MAX)]
"""A file, compressed with zlib; base64 in JSON."""


class FirmwareState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Firmware state of an exported VM, for the VM made from it. It is secret: keys in a TPM can unlock the disk."""

    nvram: Packed | None = None
    tpm: Packed | None = None
