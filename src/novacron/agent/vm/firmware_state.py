"""How what a VM's firmware and TPM remember becomes part of an export, and of a VM that is made from one."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from novacron.agent.vm.directory import VmDirectory
from novacron.disk.files import is_plain, open_plain
from novacron.model.firmware_state import FirmwareState
from novacron.model.limits import FIRMWARE_STATE_BYTES_MAX
from novacron.model.vm import Firmware, VmSpec
from novacron.qemu import firmware

FILE_BYTES_MAX = 1 << 20


class BadState(Exception):
    """A firmware or a TPM can't begin with this."""


def pack(directory: Path, nvram: bytes | None = None) -> FirmwareState:
    """Return what the firmware and the TPM of the VM in ``directory`` remember; ``nvram``: the variables, where they
    were decrypted. Raises BadState, OSError."""
    variables = _packed(directory / firmware.NVRAM) if nvram is None else _compressed(firmware.NVRAM, nvram)
    return FirmwareState(variables, _packed(directory / firmware.TPM_FILE))


def _packed(path: Path) -> bytes | None:
    if not is_plain(path):
        return None
    with open_plain(path) as file:
        return _compressed(path.name, file.read(FILE_BYTES_MAX + 1))


def _compressed(name: str, data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    if len(data) > FILE_BYTES_MAX or len(packed) > FIRMWARE_STATE_BYTES_MAX:
        raise BadState(f"{name} is too large")
    return packed


class Remembered(NamedTuple):
    """What a VM's firmware and TPM remember; None: it has none, or they begin anew."""

    nvram: bytes | None
    tpm: bytes | None


def unpacked(spec: VmSpec, state: FirmwareState) -> Remembered:
    """Return what of ``state`` a VM of this spec can have. Raises BadState, OSError."""
    tpm = None if state.tpm is None or not spec.tpm else _unpacked(state.tpm, "tpm")
    if state.nvram is None or spec.firmware is Firmware.BIOS:
        return Remembered(None, tpm)
    data = _unpacked(state.nvram, "nvram")
    files = firmware.files(spec.firmware)
    if files is not None and len(data) != files[1].stat().st_size:
        raise BadState(f"the variables of its firmware have {len(data)} bytes, not {files[1].stat().st_size}")
    return Remembered(data, tpm)


def unpack(home: VmDirectory, spec: VmSpec, state: FirmwareState) -> bytes | None:
    """Let a VM that has not run yet begin with ``state``: give it the state of its TPM, and return the variables of its
    firmware, if there are any. Raises BadState, OSError."""
    remembered = unpacked(spec, state)
    give_tpm(home, remembered.tpm)
    return remembered.nvram


def give_tpm(home: VmDirectory, data: bytes | None) -> None:
    """Let a VM's TPM begin with this, if it has no state yet. Raises OSError."""
    if data is not None:
        home.give_directory(firmware.TPM_STATE)
        _begin(home, firmware.TPM_FILE, data)


def _unpacked(packed: bytes, field: str) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(packed, FILE_BYTES_MAX)
    except zlib.error as error:
        raise BadState(f"firmware_state.{field} is damaged: {error}") from error
    if not decompressor.eof:
        raise BadState(f"firmware_state.{field} is damaged, or has more than {FILE_BYTES_MAX} bytes")
    return data


def _begin(home: VmDirectory, name: str, data: bytes) -> None:
    path = home.path / name
    if os.path.lexists(path):
        return
    scratch = home.path / "firmware.new"
    scratch.write_bytes(data)
    scratch.chmod(0o600)
    uid = home.uid()
    if uid is not None:
        os.chown(scratch, uid, uid)
    scratch.rename(path)
