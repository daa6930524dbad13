"""Keys of projects: wrapped, unwrapped, handed on, and never shown."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from novacron import platform_key, private_file
from novacron.agent.vm import keys, nvram
from novacron.agent.vm.directory import VmDirectory
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.tenant import tenant_of
from novacron.disk import luks, overlay
from novacron.disk.images import LocalImage
from novacron.disk.overlay import OverlayFailed
from novacron.dwcp.page_ring import PAGE, open_ring
from novacron.model.encryption import DataKey, WrappedKey
from novacron.model.errors import Conflict, InvalidInput, NovaError, Unavailable
from novacron.model.node import AcceleratorKind, ImageInfo
from novacron.model.vm import VmSpec
from novacron.platform_key import KeyCommand, KeyFile, PlatformKeys
from novacron.qemu.command import QemuCd, QemuConfig, QemuKey, QemuVolume, volume_node
from novacron.qemu.command import command as qemu_command
from novacron.server import project_secrets
from novacron.wire import messages as wire
from tests.support.plain import files_with
from tests.waiting import eventually

KEY = DataKey("key-0123456789abcdef", bytes(range(32)))
KMS = """
import base64, json, sys
said = json.load(sys.stdin)
key = bytes([MASK]) * 32
turned = lambda text: base64.b64encode(bytes(a ^ b for a, b in zip(base64.b64decode(text), key))).decode()
if "wrap" in said:
    print(json.dumps({"wrapped": turned(said["wrap"]), "key": "kms/1"}))
elif "unwrap" in said:
    print(json.dumps({"secret": turned(said["unwrap"])}))
else:
    print(json.dumps({"key": "kms/1"}))
"""


def file(directory: Path, name: str = "platform.key") -> Path:
    path = directory / name
    private_file.write(path, base64.b64encode(secrets.token_bytes(32)) + b"\n")
    return path


def command(code: str) -> KeyCommand:
    return KeyCommand([sys.executable, "-c", code])


async def test_a_key_is_unwrapped_by_the_platform_key_that_wrapped_it_and_no_other(tmp_path: Path) -> None:
    first, second = KeyFile(file(tmp_path, "1")), KeyFile(file(tmp_path, "2"))
    wrapped = await first.wrap(KEY)
    assert KEY.secret not in wrapped.wrapped and wrapped.wrapped_by == await first.id() != await second.id()
    assert await first.unwrap(wrapped) == KEY
    with pytest.raises(Unavailable, match=r"which file-[0-9a-f]{16} is not .*--former-platform-key"):
        await second.unwrap(wrapped)
    for changed in (wrapped.wrapped[:-1], b"", wrapped.wrapped[:-1] + bytes([wrapped.wrapped[-1] ^ 1])):
        with pytest.raises(Unavailable):
            await first.unwrap(msgspec.structs.replace(wrapped, wrapped=changed))
    with pytest.raises(Unavailable):
        await first.unwrap(msgspec.structs.replace(wrapped, id="key-of-another-project"))


async def test_after_a_rotation_the_former_platform_key_unwraps_and_the_present_one_wraps(tmp_path: Path) -> None:
    old, new = f"file:{file(tmp_path, 'old')}", f"file:{file(tmp_path, 'new')}"
    wrapped = await PlatformKeys.of(old, None).wrap(KEY)
    rotated = PlatformKeys.of(new, old)
    again = await rotated.wrap(await rotated.unwrap(wrapped))
    assert again.wrapped_by == await rotated.id() != wrapped.wrapped_by
    assert await PlatformKeys.of(new, None).unwrap(again) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
async def test_a_platform_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = file(tmp_path)
    path.chmod(mode)
    with pytest.raises(InvalidInput, match=rf"can be read by others: its mode is {mode:04o} \(chmod 600"):
        PlatformKeys.of(f"file:{path}", None)


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "names no"), ("file:relative", "names no"), ("command:", "names no"), ("command:'x", "names no"),
     ("tpm:1", "names no"), ("file:/none/such", "can't be read")],
)  # fmt: skip
def test_an_option_that_names_no_platform_key_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        PlatformKeys.of(text, None)


def test_a_file_without_a_key_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"short", base64.b64encode(bytes(31)), b"\xff" * 44):
        private_file.write(tmp_path / "key", content)
        with pytest.raises(InvalidInput, match="holds no platform key"):
            PlatformKeys.of(f"file:{tmp_path / 'key'}", None)


async def test_without_a_platform_key_the_error_says_what_to_do() -> None:
    for ask in (PlatformKeys(None).new(), PlatformKeys(None).id()):
        with pytest.raises(Conflict, match="start it with --platform-key"):
            await ask


async def test_a_command_wraps_and_unwraps(tmp_path: Path) -> None:
    kms = command(KMS.replace("MASK", "90"))
    wrapped = await kms.wrap(KEY)
    assert (wrapped.wrapped_by, await kms.id()) == ("kms/1", "kms/1")
    assert await PlatformKeys(kms).unwrap(wrapped) == KEY


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (KMS.replace("MASK", "0"), "has not encrypted"),
        ("print('no')", "did not answer with a JSON object"),
        ("print('{}')", "has no usable field"),
        ("import sys; sys.exit('the service is away')", "ended with 1: the service is away"),
    ],
)
async def test_a_command_that_does_not_do_what_it_should_is_an_error(code: str, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        await PlatformKeys(command(code)).wrap(KEY)


async def test_a_command_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform_key, "COMMAND_S_MAX", 0.2)
    with pytest.raises(Unavailable, match="took longer"):
        await command("import time; time.sleep(600)").id()
    with pytest.raises(Unavailable, match="can't be run"):
        await KeyCommand([str(tmp_path / "none")]).id()


async def test_a_platform_key_that_does_not_unwrap_what_it_wraps_gives_no_key() -> None:
    class Forgets(KeyCommand):
        async def unwrap(self, wrapped: WrappedKey) -> DataKey:
            return DataKey(wrapped.id, bytes(32))

    with pytest.raises(Unavailable, match="does not unwrap what it has wrapped"):
        await PlatformKeys(Forgets([sys.executable, "-c", KMS.replace("MASK", "90")])).new()


def test_a_key_is_not_shown() -> None:
    text = repr(wire.VolumeAttached) + repr(KEY) + str((KEY,)) + f"{KEY}"
    assert KEY.secret.hex() not in text and repr(KEY.secret) not in text and str(KEY.secret) not in text


def assigned(spec: VmSpec, *volumes: wire.VolumeAttached, given: tuple[DataKey, ...] = ()) -> wire.Assignment:
    return wire.Assignment(
        "vm-1", "web", spec, False, "", 0, None, "project-1", b"k" * 32, volumes=volumes, keys=given
    )  # fmt: skip


def attached(key: str) -> wire.VolumeAttached:
    return wire.VolumeAttached("vol-1", "local", 0, 16, False, None, None, None, False, True, key)


def test_a_disk_whose_key_is_not_there_does_not_begin() -> None:
    plain, encrypted = VmSpec(image="disk"), VmSpec(image="disk", encryption_key=KEY.id)
    assert keys.disk_key(assigned(plain)) is None and keys.disk_key(assigned(encrypted, given=(KEY,))) == KEY
    keys.check_all(assigned(encrypted, attached(KEY.id), given=(KEY,)))
    with pytest.raises(KeyMissing, match=f"its disk is encrypted with {KEY.id}"):
        keys.check_all(assigned(encrypted))
    with pytest.raises(KeyMissing, match="volume vol-1 is encrypted"):
        keys.check_all(assigned(plain, attached(KEY.id)))


def test_of_a_vm_with_an_encrypted_volume_no_page_is_kept_in_the_clear() -> None:
    plain = VmSpec(image="disk")
    assert not tenant_of(assigned(plain, attached(""))).encrypted
    assert tenant_of(assigned(plain, attached(KEY.id))).encrypted
    assert tenant_of(assigned(VmSpec(image="disk", encryption_key=KEY.id))).encrypted


def test_an_encrypted_ring_gives_pages_back_and_its_file_does_not_hold_them(tmp_path: Path) -> None:
    pages = [bytes([number]) * PAGE for number in range(1, 41)]
    plain, sealed = (open_ring(tmp_path, 16, encrypted) for encrypted in (False, True))
    for ring in (plain, sealed):
        for at in range(0, 40, 5):
            ring.append(pages[at : at + 5])
        ring.next, ring._slots = 40, 16
        for slot in range(24, 40):
            raw = os.pread(ring._file, PAGE, slot % 16 * PAGE)
            assert (raw == pages[slot]) is (ring is plain)
            assert ring._opened(raw, slot) == pages[slot]
    stored = [os.pread(sealed._file, PAGE, slot * PAGE) for slot in range(16)]
    sealed.append([pages[24]])
    assert os.pread(sealed._file, PAGE, 40 % 16 * PAGE) not in stored, "each slot has its own key stream"


def test_a_key_is_given_to_qemu_in_a_file_and_in_no_argument() -> None:
    volume = volume_node(QemuVolume("vol-1", 0, 10, key=KEY.id))
    assert (volume["driver"], volume["key-secret"]) == ("luks", KEY.id)
    assert volume_node(QemuVolume("vol-1", 0, 10)) == {**volume_node(QemuVolume("vol-1", 0, 11)), "driver": "raw"}
    assert "secret" not in json.dumps(msgspec.to_builtins(QemuKey(KEY.id, 7)))


def test_a_file_in_memory_is_read_as_often_as_needed_and_written_by_nobody() -> None:
    descriptor = private_file.in_memory("x", b"content")
    try:
        assert [Path(f"/proc/self/fd/{descriptor}").read_bytes() for _ in range(2)] == [b"content"] * 2
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"other")
    finally:
        os.close(descriptor)


def test_variables_of_a_firmware_are_opened_with_the_key_of_the_vm() -> None:
    config = QemuConfig(
        "vm-1", Path(), 1, 64, "q35", AcceleratorKind.TCG, None, None, "", (), firmware=7, nvram_key=KEY.id
    )
    for each, driver in ((config, "luks"), (msgspec.structs.replace(config, nvram_key=""), "raw")):
        nodes = [json.loads(part) for part in qemu_command(each, incoming=False) if '"vars0"' in part]
        assert [node["driver"] for node in nodes] == [driver]
        assert nodes[0].get("key-secret") == (KEY.id if driver == "luks" else None)


def local_image(key: str) -> LocalImage:
    info = ImageInfo("secret", "0" * 64, 4096, "iso", disk_bytes=4096)
    return LocalImage(info, Path("/images/secret"), None, None, "", Path("/images/secret/disk.luks"), key)


def test_an_image_is_opened_with_its_own_key_also_by_a_vm_whose_disk_is_not_encrypted() -> None:
    config = QemuConfig(
        "vm-1", Path(), 1, 64, "pc", AcceleratorKind.TCG, None, None, "", (), disk=Path("disk.qcow2"), below=7,
        below_key=KEY.id, cds=(QemuCd(0, "cd0-x", 8, KEY.id),),
    )  # fmt: skip
    nodes = [json.loads(part) for part in qemu_command(config, incoming=False) if part.startswith("{")]
    disk, cd = (next(node for node in nodes if node.get("node-name") == name) for name in ("disk0", "cd0-x"))
    assert "encrypt" not in disk
    for each in (disk["backing"], cd):
        assert (each["driver"], each["key-secret"], each["read-only"]) == ("luks", KEY.id, True)


def test_an_image_whose_key_is_not_there_is_not_used() -> None:
    plain, image = assigned(VmSpec(image="secret")), local_image(KEY.id)
    with pytest.raises(KeyMissing, match=f"image secret is encrypted with {KEY.id}"):
        keys.image_key(plain, image)
    assert keys.image_key(assigned(VmSpec(image="secret"), given=(KEY,)), image) == KEY
    assert keys.image_key(plain, local_image("")) is None


async def test_variables_that_are_encrypted_are_left_alone_and_others_stay_as_they_are(tmp_path: Path) -> None:
    home, path = VmDirectory(tmp_path, None), tmp_path / "nvram.fd"
    path.write_bytes(luks.MAGIC + b"encrypted")
    await nvram.have(home, b"begins", KEY)
    assert path.read_bytes() == luks.MAGIC + b"encrypted"
    path.unlink()
    for begins in (b"begins", b"begins otherwise"):
        await nvram.have(home, begins, None)
        assert path.read_bytes() == b"begins"


@pytest.mark.slow  # as below
async def test_variables_of_an_earlier_agent_become_encrypted_with_what_is_in_them(tmp_path: Path) -> None:
    home, path, content = VmDirectory(tmp_path, None), tmp_path / "nvram.fd", b"MARKER".ljust(540_672, b"\xff")
    path.write_bytes(content)
    await nvram.have(home, b"begins", KEY)
    assert path.stat().st_size == luks.file_bytes(len(content), KEY.id)
    assert files_with(tmp_path, b"MARKER") == set() and luks.is_encrypted(path)
    with luks.for_tool(KEY) as given:
        disk = f"driver=luks,key-secret={KEY.id},file.filename={path}"
        subprocess.run(  # noqa: ASYNC221
            ["qemu-img", "convert", *given.options, "--image-opts", disk, "-O", "raw", str(tmp_path / "plain")],
            pass_fds=given.descriptors, check=True,
        )  # fmt: skip
    assert (tmp_path / "plain").read_bytes() == content
    path.unlink()
    await nvram.have(home, b"MARKER".ljust(4096), KEY)
    assert files_with(tmp_path, b"MARKER") == {"plain"} and luks.is_encrypted(path)


@pytest.mark.slow  # QEMU measures PBKDF2 for each header: 2.5 s of a processor
async def test_disks_hold_nothing_in_the_clear_and_open_with_their_key_alone(tmp_path: Path) -> None:
    marker, other = b"MARKER" * 100, DataKey(KEY.id, bytes(32))
    below = tmp_path / "below.raw"
    below.write_bytes(marker.ljust(1 << 20, b"\0"))
    layer, volume = tmp_path / "layer.qcow2", tmp_path / "volume.raw"
    await overlay.create(layer, below, 1 << 20, KEY)
    assert overlay.size_bytes(layer) == 1 << 20
    inside = overlay.Snapshots(layer, lambda command: command, KEY)
    await inside.create("one")
    assert await inside.names() == {"one"}
    with pytest.raises(OverlayFailed):
        await overlay.Snapshots(layer, lambda command: command, other).create("two")
    with pytest.raises(OverlayFailed):
        await overlay.Snapshots(layer, lambda command: command, None).create("two")

    await luks.create_volume(volume, 1 << 20, KEY, 60)
    assert volume.stat().st_size == luks.file_bytes(1 << 20, KEY.id) and luks.file_bytes(1 << 20, "") == 1 << 20
    await luks.fill_volume(volume, below, KEY, 60)
    assert marker[:60] not in volume.read_bytes()
    plain = tmp_path / "plain.raw"
    with luks.for_tool(KEY) as given:
        disk = f"driver=luks,key-secret={KEY.id},file.filename={volume}"
        subprocess.run(  # noqa: ASYNC221
            ["qemu-img", "convert", *given.options, "--image-opts", disk, "-O", "raw", str(plain)],
            pass_fds=given.descriptors, check=True,
        )  # fmt: skip
    assert plain.read_bytes() == below.read_bytes()


async def test_a_server_gives_out_a_key_until_it_is_erased(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    platform_keys = PlatformKeys.of(f"file:{file(tmp_path)}", None)
    stored, unwrapped = [await platform_keys.wrap(KEY)], list[str]()

    class Counting:
        async def unwrap(self, wrapped: WrappedKey) -> DataKey:
            unwrapped.append(wrapped.id)
            return await platform_keys.unwrap(wrapped)

    async def read(connection: object, ids: set[str]) -> list[WrappedKey]:
        return [key for key in stored if key.id in ids]

    monkeypatch.setattr("novacron.store.project_keys.wrapped", read)
    given = project_secrets.ProjectSecrets(cast(Any, None), cast(Any, Counting()), lambda: None)
    connection = cast(Any, None)
    assert await given.data_keys(connection, {""}) == {}
    for _ in range(2):
        assert await given.data_keys(connection, {"", KEY.id}) == {KEY.id: KEY}
    assert unwrapped == [KEY.id], "it is held"
    stored.clear()
    assert await given.data_keys(connection, {KEY.id}) == {} and given._held == {}


@pytest.mark.parametrize("error", [Unavailable("the service is away"), RuntimeError("a defect"), OSError("no file")])
async def test_a_key_that_can_not_be_unwrapped_now_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Away:
        async def unwrap(self, wrapped: WrappedKey) -> DataKey:
            asked.append(wrapped.id)
            raise error

    async def read(connection: object, ids: set[str]) -> list[WrappedKey]:
        return [WrappedKey(KEY.id, b"x", "kms")]

    asked, again = list[str](), list[str]()
    monkeypatch.setattr(project_secrets, "RETRY_S", 0.05)
    monkeypatch.setattr("novacron.store.project_keys.wrapped", read)
    given = project_secrets.ProjectSecrets(cast(Any, None), cast(Any, Away()), lambda: again.append("now"))
    for _ in range(2):
        assert await given.data_keys(cast(Any, None), {KEY.id}) == {}
    assert asked == [KEY.id], "not for each node that needs it"
    await eventually(lambda: again == ["now"], "nodes are told anew")


def test_errors_of_keys_are_shown_to_users() -> None:
    assert issubclass(Unavailable, NovaError) and issubclass(KeyMissing, OverlayFailed)
