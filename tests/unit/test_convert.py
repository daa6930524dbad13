"""Disks that a tool has to be told how to read."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from novacron.disk.convert import ToolUser, convert, has_log
from novacron.disk.errors import Unacceptable
from novacron.disk.qemu_img import unchanged
from novacron.model.image import ImageFormat
from tests.support import vhdx

SIZE = 16 << 20
NOBODY_ELSE = ToolUser(unchanged, None)


def create(file: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(file), str(SIZE)], check=True)


def refusal_of_the_tool(file: Path, raw: Path) -> str:
    command = ["qemu-img", "convert", "-O", "raw", str(file), str(raw)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


async def test_what_is_only_in_a_vhdxs_log_is_read_and_the_file_stays_as_it_came(tmp_path: Path) -> None:
    file, raw = vhdx.with_log(tmp_path / "disk.vhdx", SIZE), tmp_path / "raw"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    assert "log that needs to be replayed" in refusal_of_the_tool(file, raw), "the case is the one that is meant"
    await convert(file, ImageFormat.VHDX, raw, None, 0, NOBODY_ELSE)
    assert raw.read_bytes() == bytes([vhdx.PATTERN]) * (1 << 20) + bytes(SIZE - (1 << 20))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.vhdx", "raw"], "nothing else is left"


async def test_a_closed_vhdx_has_no_log_and_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "disk.vhdx"
    create(file)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        assert not has_log(descriptor)
    finally:
        os.close(descriptor)
    await convert(file, ImageFormat.VHDX, tmp_path / "raw", None, 0, NOBODY_ELSE)
    assert (tmp_path / "raw").stat().st_size == SIZE


async def test_a_refusal_of_the_tool_is_said_without_the_names_that_it_was_given(tmp_path: Path) -> None:
    file = vhdx.with_log(tmp_path / "disk.vhdx", SIZE)
    data = bytearray(file.read_bytes())
    data[:8] = b"VHDXFILE"
    file.write_bytes(data)
    with pytest.raises(Unacceptable) as refused:
        await convert(file, ImageFormat.VHDX, tmp_path / "raw", None, 0, NOBODY_ELSE)
    assert "json:" not in str(refused.value) and "/proc/" not in str(refused.value)
