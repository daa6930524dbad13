"""The platform key, sealed by a TPM: swtpm and the commands that a server uses are real."""

from __future__ import annotations

import asyncio
import base64
import secrets
from pathlib import Path

import pytest

from novacron import private_file, tpm_sealing
from novacron.local import key_sealing
from novacron.model.errors import Conflict, InvalidInput, Unavailable
from novacron.platform_key import KeyFile, PlatformKeys
from tests.support.tpm import tpm


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "platform.key"
    private_file.write(path, base64.b64encode(secrets.token_bytes(32)) + b"\n")
    return path


def id_of(keys: PlatformKeys | KeyFile) -> str:
    return asyncio.run(keys.id())


def test_a_sealed_platform_key_is_the_one_in_the_file_on_this_tpm_alone(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = tmp_path / "platform.tpm"
    with tpm(tmp_path / "tpm") as reached:
        monkeypatch.setenv("TPM2TOOLS_TCTI", reached)
        assert key_sealing.seal(key, sealed) == id_of(KeyFile(key))
        assert key.read_bytes().strip() not in sealed.read_bytes() and sealed.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Conflict, match="not overwritten"):
            key_sealing.seal(key, sealed)
        in_file = asyncio.run(PlatformKeys.of(f"file:{key}", None).new())
        keys = PlatformKeys.of(f"tpm:{sealed}", None)
        assert in_file.wrapped_by == id_of(keys)
        unwrapped = asyncio.run(keys.unwrap(in_file))
        assert unwrapped == asyncio.run(PlatformKeys.of(f"file:{key}", None).unwrap(in_file))
    assert asyncio.run(keys.unwrap(in_file)) == unwrapped, "it was unsealed once"
    with tpm(tmp_path / "tpm") as reached:  # the host was switched off and on
        monkeypatch.setenv("TPM2TOOLS_TCTI", reached)
        assert asyncio.run(PlatformKeys.of(f"tpm:{sealed}", None).unwrap(in_file)) == unwrapped
    with tpm(tmp_path / "another") as reached:
        monkeypatch.setenv("TPM2TOOLS_TCTI", reached)
        with pytest.raises(InvalidInput, match=r"platform-key: the TPM refused tpm2_load"):
            PlatformKeys.of(f"tpm:{sealed}", None)


def test_a_tpm_that_is_away_or_not_asked_right_is_an_error_in_words(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPM2TOOLS_TCTI", "device:/nowhere")
    with pytest.raises(Unavailable, match="the TPM refused tpm2_createprimary"):
        key_sealing.seal(key, tmp_path / "platform.tpm")
    assert not (tmp_path / "platform.tpm").exists()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="is not installed"):
        key_sealing.seal(key, tmp_path / "platform.tpm")
    with pytest.raises(InvalidInput, match="No such file"):
        PlatformKeys.of(f"tpm:{tmp_path}/none", None)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"public": 1, "private": 2}', b'{"public": "*"}'])
def test_what_no_tpm_has_sealed_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a secret"):
        tpm_sealing.unseal(content)
    (tmp_path / "platform.tpm").write_bytes(content)
    with pytest.raises(InvalidInput, match="holds no platform key"):
        PlatformKeys.of(f"tpm:{tmp_path}/platform.tpm", None)


@pytest.mark.parametrize("size", [0, tpm_sealing.SECRET_BYTES_MAX + 1])
def test_a_secret_of_a_size_that_no_tpm_takes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(tpm_sealing.SECRET_BYTES_MAX)):
        tpm_sealing.seal(bytes(size))
