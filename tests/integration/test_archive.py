"""VMs as files: exported while they run and while they do not, imported again, OVAs, and hostile files."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.platform import Platform, until
from novacron.client import ApiError, Unreachable, archive, archive_format
from novacron.client.errors import ArchiveError
from tests.integration.conftest import Api
from tests.support.boot_sector import sector
from tests.support.ovf import CD, CPUS, SCSI, descriptor, drive, memory
from tests.support.vms import NewVm, Object, directory_of

DISK_BYTES = 8 << 20


@pytest.fixture
def talking_image(site: Platform, new_name: Callable[[], str], tmp_path: Path) -> Iterator[str]:
    """An image whose guest says "from its disk", and stands still."""
    name, file = new_name(), tmp_path / "source.raw"
    file.write_bytes(sector("from its disk").ljust(4096, b"\0") + os.urandom(1 << 20))
    os.truncate(file, DISK_BYTES)
    site.client.import_image(name, file)
    until(lambda: any(listed["name"] == name for listed in site.client.list("images")), "the image is there")
    yield name
    wait_until_image_deleted(site, name)


def wait_until_image_deleted(site: Platform, image: str) -> None:
    until(lambda: image_is_deleted(site, image), f"image {image} is gone")


def image_is_deleted(site: Platform, image: str) -> bool:
    with contextlib.suppress(ApiError):
        site.client.delete_image(image)
    return all(listed["name"] != image for listed in site.client.list("images"))


def wait_until_console_shows(site: Platform, vm: Object, text: str) -> None:
    def says() -> bool:
        with contextlib.suppress(ApiError):  # it is not there yet
            return text in site.client.console_log(vm["id"]).decode()
        return False

    until(says, f"it says {text}", 40)


def write_boot_sector(site: Platform, vm: Object, text: str) -> None:
    """Write another boot sector to the layer of a VM that is off."""
    new = directory_of(site, vm) / "sector.bin"
    new.write_bytes(sector(text))
    layer = directory_of(site, vm) / "disk.qcow2"
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -s {new} 0 512", str(layer)]
    subprocess.run(command, check=True, capture_output=True)
    new.unlink()


def test_a_vm_comes_back_from_its_archive(
    site: Platform, talking_image: str, new_vm: NewVm, new_name: Callable[[], str], tmp_path: Path
) -> None:
    vm = new_vm(image=talking_image, vcpus=2)
    wait_until_console_shows(site, vm, "from its disk")
    vm = site.client.get("vms", vm["id"])
    site.cli("vm", "kill", vm["name"], "--wait")
    write_boot_sector(site, vm, "changed")
    site.cli("vm", "clone", vm["name"], f"{vm['name']}-l", "--linked", "--wait")
    site.cli("vm", "start", vm["name"], "--wait")
    wait_until_console_shows(site, vm, "changed")
    file = tmp_path / "vm.tar"
    assert "a disk of 8.0 MiB" in site.cli("vm", "export", vm["name"], str(file)).stdout
    assert file.stat().st_mode & 0o077 == 0, "nobody else reads the VM's disk"
    with tarfile.open(file) as opened:
        assert opened.getnames() == ["vm.json", "disk.qcow2"]
        about = json.loads(opened.extractfile("vm.json").read())  # type: ignore[union-attr]
        inside = opened.extractfile("disk.qcow2").read()  # type: ignore[union-attr]
    assert hashlib.sha256(inside).hexdigest() == about["sha256"] and len(inside) < 2 << 20
    assert (
        "backing"
        not in subprocess.run(
            ["qemu-img", "info", "/dev/stdin"], input=inside, capture_output=True, check=False
        ).stdout.decode()
    )
    assert site.cli("vm", "exports").stdout.count("\n") <= 1, "what was fetched is not kept"
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0
    refused = site.cli("vm", "export", vm["name"], str(file), check=False)
    assert refused.returncode != 0 and "exists" in refused.stderr
    name = new_name()
    imported = site.cli("vm", "import", str(file), name, "--wait")
    again, mac = site.client.get("vms", name), vm["spec"]["mac"]
    wait_until_console_shows(site, again, "changed")
    assert about["macs"] == [mac], "the archive keeps it"
    assert f"its MAC address {mac} is not free: it has {again['spec']['mac']}" in imported.stderr
    assert again["spec"]["mac"] not in (None, mac)
    assert (again["spec"]["vcpus"], again["spec"]["image"]) == (2, f"{name}-disk")
    for vm_name in (name, f"{vm['name']}-l"):
        site.cli("vm", "delete", vm_name, "--wait", "--yes")
    wait_until_image_deleted(site, f"{name}-disk")


def test_an_archive_restores_the_state_of_firmware_and_tpm(
    site: Platform, api: Api, talking_image: str, new_vm: NewVm, new_name: Callable[[], str], tmp_path: Path
) -> None:
    vm = new_vm(image=talking_image, firmware="uefi", tpm=True)
    site.wait_state(vm["id"], "running")
    vm = site.client.get("vms", vm["id"])
    until(lambda: (directory_of(site, vm) / "tpm/tpm2-00.permall").exists(), "its TPM remembers something")
    site.cli("vm", "kill", vm["name"], "--wait")
    variables = directory_of(site, vm) / "nvram.fd"
    with variables.open("r+b") as opened:  # as its guest would set one
        opened.seek(-4096, os.SEEK_END)
        opened.write(b"remembered")
    kept = {name: (directory_of(site, vm) / name).read_bytes() for name in ("nvram.fd", "tpm/tpm2-00.permall")}
    file = tmp_path / "vm.tar"
    assert "keep it as secret" in site.cli("vm", "export", vm["name"], str(file)).stderr
    name = new_name()
    site.cli("vm", "import", str(file), name, "--no-start", "--wait")
    again = site.wait_state(site.client.get("vms", name)["id"], "stopped")
    site.cli("vm", "start", name, "--wait")
    assert (directory_of(site, again) / "nvram.fd").read_bytes()[-4096:] == kept["nvram.fd"][-4096:]
    remembered = (directory_of(site, again) / "tpm/tpm2-00.permall").read_bytes()
    assert remembered[:64] == kept["tpm/tpm2-00.permall"][:64] and len(remembered) == len(kept["tpm/tpm2-00.permall"])
    site.cli("vm", "delete", name, "--wait", "--yes")
    wait_until_image_deleted(site, f"{name}-disk")
    for field, value, why in (
        ("nvram", base64.b64encode(b"x").decode(), "is damaged"),
        ("nvram", base64.b64encode(zlib.compress(bytes(512))).decode(), "512 bytes"),
        ("tpm", base64.b64encode(zlib.compress(bytes(2 << 20))).decode(), "more than"),
    ):
        bad = new_vm(image=talking_image, firmware="uefi", tpm=True, firmware_state={field: value})
        until(lambda id=bad["id"], why=why: why in site.client.get("vms", id)["status"]["reason"], why)  # type: ignore[misc]
    refused = api(
        "POST", "/api/v1/vms", {"name": "big", "image": talking_image, "firmware_state": {"tpm": "A" * 400_000}}
    )
    assert refused.status == 400 and "firmware_state" in str(refused.problem)


def test_a_vm_without_its_own_disk_boots_from_a_volume_that_began_as_a_copy(
    site: Platform, api: Api, talking_image: str, new_vm: NewVm, new_name: Callable[[], str]
) -> None:
    name = new_name()
    small = api("POST", "/api/v1/volumes", {"name": name, "size_mib": 4, "image": talking_image})
    assert small.status == 400 and "has a disk of 8 MiB" in small.problem["detail"]
    site.cli("volume", "create", name, "--size", "16", "--image", talking_image, "--pool", "nfs")
    root = site.client.get("volumes", name)
    vm = new_vm(image=talking_image, own_disk=False, power="stopped", ha=True)
    until(lambda: site.client.get("vms", vm["id"])["node"], "it is placed")
    site.cli("volume", "attach", name, vm["name"], "--boot-order", "0")
    site.cli("vm", "start", vm["name"], "--wait")
    now = site.client.get("vms", vm["id"])
    wait_until_console_shows(site, now, "from its disk")
    assert not (directory_of(site, now) / "disk.qcow2").exists()
    refused = api("POST", "/api/v1/vms", {"name": "sized", "image": talking_image, "own_disk": False, "disk_mib": 64})
    assert refused.status == 400 and refused.problem["field"] == "disk_mib"
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("volume", "detach", name)
    site.cli("volume", "delete", name, "--yes")
    assert not (site.shared_pool / f"{root['id']}.raw").exists()


def test_an_export_goes_on_whatever_is_killed(
    site: Platform, talking_image: str, new_vm: NewVm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = new_vm(image=talking_image, power="stopped")
    vm = site.wait_state(vm["id"], "stopped")
    agent, file = site.agents[vm["node"]], tmp_path / "vm.tar"
    begun = site.client.act("vms", vm["id"], "export")
    assert agent.process is not None
    os.kill(agent.process.pid, signal.SIGKILL)
    agent.process.wait()
    agent.start()
    done = site.client.wait("exports", begun["id"], lambda now: now is None or now["phase"] != "making", 40)
    assert done is not None and done["phase"] == "ready", done
    site.client.delete("exports", begun["id"])
    exports = site.directory / vm["node"] / "agent" / "exports"
    until(lambda: not list(exports.iterdir()), "nothing of it is left")
    real = site.client.export_data
    fetched: list[int] = []

    def cut_off(id: str, offset: int) -> bytes:
        if fetched:
            raise Unreachable("cut off")
        fetched.append(offset)
        return real(id, offset)[:100_000]

    with monkeypatch.context() as patched, pytest.raises(Unreachable):
        patched.setattr(archive, "RETRY_S", 0.0)
        patched.setattr(site.client, "export_data", cut_off)
        archive.export(site.client, vm["id"], file, 60)
    assert not file.exists() and (tmp_path / "vm.tar.part").exists()
    site.server.kill()
    site.server.start()
    site.wait_ready()
    site.wait_node(vm["node"])
    kept = [export["id"] for export in site.client.list("exports")]
    assert [archive.export(site.client, vm["id"], file, 60)["id"]] == kept, "it is that one which is gone on with"
    assert archive_format.read(file).disk.size_bytes > 1 << 20 and not (tmp_path / "vm.tar.part").exists()


def test_an_export_without_enough_space_fails_with_its_reason(
    site: Platform, talking_image: str, new_vm: NewVm
) -> None:
    vm = site.wait_state(new_vm(image=talking_image, power="stopped")["id"], "stopped")
    exports = site.directory / vm["node"] / "agent" / "exports"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(exports)], check=True)
    try:
        begun = site.client.act("vms", vm["id"], "export")
        done = site.client.wait("exports", begun["id"], lambda now: now is None or now["phase"] != "making", 40)
        assert done is not None and done["phase"] == "failed" and "no space" in done["error"], done
        assert not list(exports.iterdir())
        site.client.delete("exports", begun["id"])
    finally:
        subprocess.run(["umount", "-l", str(exports)], check=True)


def ova(
    path: Path, disk: bytes, *, ovf: str | None = None, name: str = "disk.vmdk", sums: bool = True, second: bytes = b""
) -> Path:
    """Write an OVA as another platform would."""
    file2 = '<File ovf:href="second.vmdk" ovf:id="file2"/>' if second else ""
    disk2 = f'<Disk ovf:capacity="{DISK_BYTES}" ovf:diskId="vmdisk2" ovf:fileRef="file2"/>' if second else ""
    item2 = (
        "<Item><rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>"
    )
    described = (
        ovf
        or f"""<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:href="{name}" ovf:id="file1" ovf:size="{len(disk)}"/>{file2}</References>
 <DiskSection><Info/><Disk ovf:capacity="{DISK_BYTES}" ovf:diskId="vmdisk1" ovf:fileRef="file1"/>{disk2}</DiskSection>
 <VirtualSystem ovf:id="Web Server 1"><Info/>
  <VirtualHardwareSection><Info/>
   <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
    <rasd:VirtualQuantity>192</rasd:VirtualQuantity></Item>
   <Item><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
   {item2 if second else ""}
  </VirtualHardwareSection></VirtualSystem></Envelope>"""
    )
    digest, sums_of = hashlib.sha256(disk).hexdigest(), hashlib.sha256(described.encode()).hexdigest()
    members = {"vm.ovf": described.encode(), name: disk} | ({"second.vmdk": second} if second else {})
    if sums:
        of_second = f"SHA256(second.vmdk)= {hashlib.sha256(second).hexdigest()}\n" if second else ""
        members["vm.mf"] = f"SHA256(vm.ovf)= {sums_of}\nSHA256({name})= {digest}\n{of_second}".encode()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive_file:
        for called, data in members.items():
            member = tarfile.TarInfo(called)
            member.size = len(data)
            archive_file.addfile(member, io.BytesIO(data))
    return path


def disk_of(content: bytes, directory: Path, format: str, *options: str) -> bytes:
    raw, disk = directory / "disk.raw", directory / f"disk.{format}"
    raw.write_bytes(content.ljust(DISK_BYTES, b"\0"))
    subprocess.run(["qemu-img", "convert", "-O", format, *options, str(raw), str(disk)], check=True)
    return disk.read_bytes()


def vmdk_of(content: bytes, directory: Path) -> bytes:
    return disk_of(content, directory, "vmdk", "-o", "subformat=streamOptimized")


def test_an_ova_becomes_a_vm(site: Platform, tmp_path: Path) -> None:
    file = ova(tmp_path / "vm.ova", vmdk_of(sector("from an OVA"), tmp_path))
    site.cli("vm", "import", str(file), "--wait")
    vm = site.client.get("vms", "web-server-1")
    wait_until_console_shows(site, vm, "from an OVA")
    assert (vm["spec"]["vcpus"], vm["spec"]["memory_mib"]) == (2, 192)
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    wait_until_image_deleted(site, "web-server-1-disk")


def test_an_ova_of_a_windows_guest_boots_from_a_disk_for_which_windows_has_drivers(
    site: Platform, tmp_path: Path
) -> None:
    """The disk is a qcow2, whatever its name says, and smaller than its descriptor says."""
    guest = "<OperatingSystemSection><Description>Microsoft Windows 10 (64-bit)</Description></OperatingSystemSection>"
    text = descriptor(CPUS + memory("192", "MegaBytes") + drive("v1"), tail=guest).decode()
    disk = disk_of(sector("from its SATA disk"), tmp_path, "qcow2", "-c")
    file = ova(tmp_path / "vm.ova", disk, ovf=text.replace('"8"', '"12"').replace("2^30", "2^20"), name="one.vmdk")
    site.cli("vm", "import", str(file), "with-windows", "--wait")
    vm = site.client.get("vms", "with-windows")
    assert [vm["spec"][field] for field in ("os", "disk_bus", "nic_model", "firmware")] == [
        "windows10", "sata", "e1000", "bios",
    ]  # fmt: skip
    assert vm["spec"]["disk_mib"] == 12
    wait_until_console_shows(site, vm, "from its SATA disk")
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    wait_until_image_deleted(site, "with-windows-disk")


@pytest.mark.slow
def test_further_disks_of_an_ova_become_volumes(site: Platform, tmp_path: Path) -> None:
    first, second = vmdk_of(sector("boots"), tmp_path), disk_of(b"the second", tmp_path, "qcow2")  # whatever its name
    file = ova(tmp_path / "vm.ova", first, second=second)
    site.cli("vm", "import", str(file), "two-disks", "--no-start")
    vm = site.client.get("vms", "two-disks")
    volume = site.client.get("volumes", "two-disks-disk-2")
    assert (volume["vm"], volume["node"], volume["size_mib"] << 20) == (vm["id"], vm["node"], DISK_BYTES)
    held = next(site.directory.rglob(f"{volume['id']}.raw")).read_bytes()
    assert held == b"the second".ljust(DISK_BYTES, b"\0")
    site.client.act("volumes", volume["id"], "detach")
    until(lambda: site.client.get("volumes", volume["id"])["vm"] is None, "it is detached")
    site.cli("vm", "import", str(file), "two-disks")  # what was broken off goes on
    assert site.client.get("volumes", volume["id"])["vm"] == vm["id"]
    wait_until_console_shows(site, vm, "boots")
    refused = site.cli("vm", "import", str(file), "two-disks", check=False)
    assert refused.returncode != 0 and "exists" in refused.stderr, "it runs: it is another one"
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    site.cli("volume", "delete", volume["name"], "--yes")
    wait_until_image_deleted(site, "two-disks-disk")
    wait_until_image_deleted(site, "two-disks-disk-2")


def test_a_descriptor_with_separate_disks_becomes_a_vm_and_lists_what_was_ignored(
    site: Platform, tmp_path: Path
) -> None:
    disk = gzip.compress(vmdk_of(sector("from files"), tmp_path))
    text = descriptor(
        SCSI + CPUS + drive("v2") + drive("v3", 1) + CD,
        files=f'<File o:id="f2" o:href="disk.vmdk.gz" o:chunkSize="{len(disk) - 100}" o:compression="gzip"/>',
        disks='<Disk o:diskId="v2" o:fileRef="f2" o:capacity="8388608"/><Disk o:diskId="v3" o:capacity="3000000"/>',
        name="Größe 7",
    )
    chunks = {"disk.vmdk.gz.000000000": disk[:-100], "disk.vmdk.gz.000000001": disk[-100:], "vm.ovf": text}
    for name, data in chunks.items():
        (tmp_path / name).write_bytes(data)
    lines = [
        f"SHA1({name})= {hashlib.sha1(data, usedforsecurity=False).hexdigest()}\n" for name, data in chunks.items()
    ]
    (tmp_path / "vm.mf").write_text("".join(lines).replace(")= ", ")= 0", 1))
    damaged = site.cli("vm", "import", str(tmp_path / "vm.ovf"), "--wait", check=False)
    assert damaged.returncode == 1 and "is damaged: its checksum is not the one" in damaged.stderr
    (tmp_path / "vm.mf").write_text("".join(lines))
    done = site.cli("vm", "import", str(tmp_path / "vm.ovf"), "--wait")
    assert "not taken: a CD drive 'CD'" in done.stderr
    vm, volume = site.client.get("vms", "grosse-7"), site.client.get("volumes", "grosse-7-disk-2")
    wait_until_console_shows(site, vm, "from files")
    assert (volume["vm"], volume["size_mib"], volume["image"]) == (vm["id"], 3, None)
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    site.cli("volume", "delete", volume["name"], "--yes")
    wait_until_image_deleted(site, "grosse-7-disk")


@pytest.mark.parametrize(
    ("ovf", "why"),
    [
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "defines entities"),
        ("<x", "is no XML"),
        ("<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1'/>", "holds 0 VMs"),
    ],
)
def test_a_hostile_description_is_refused(tmp_path: Path, ovf: str, why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        archive_format.read(ova(tmp_path / "vm.ova", b"x", ovf=ovf))


def test_a_hostile_archive_is_refused(site: Platform, api: Api, new_vm: NewVm, tmp_path: Path) -> None:
    no_tar = tmp_path / "no.tar"
    no_tar.write_bytes(b"x" * 2000)
    with pytest.raises(ArchiveError, match="not a tar archive"):
        archive_format.read(no_tar)
    with tarfile.open(tmp_path / "link.tar", "w") as archive_file:
        for name in ("vm.json", "disk.qcow2"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/shadow"
            archive_file.addfile(member)
    with pytest.raises(ArchiveError, match="has neither"):
        archive_format.read(tmp_path / "link.tar")
    damaged = ova(tmp_path / "damaged.ova", b"KDMV" + bytes(2000))
    done = site.cli("vm", "import", str(damaged), check=False)
    assert done.returncode == 1 and "could not be imported" in done.stderr
    wrong = ova(tmp_path / "wrong.ova", b"KDMV" + bytes(4000), sums=True)
    data = bytearray(wrong.read_bytes())
    at = data.index(b"KDMV")
    data[at + 100] = 1
    wrong.write_bytes(data)
    done = site.cli("vm", "import", str(wrong), check=False)
    assert done.returncode == 1 and "SHA-256" in done.stderr
    assert site.cli("vm", "import", str(tmp_path / "none"), check=False).returncode == 2
    vm = site.wait_state(new_vm(image="disk", power="stopped")["id"], "stopped")
    until(lambda: site.client.get("vms", vm["id"])["node"], "it is placed")
    assert "boots the kernel of its image" in api("POST", f"/api/v1/vms/{vm['id']}/actions/export").problem["detail"]
    assert api("GET", "/api/v1/exports/none/data").status == 404
