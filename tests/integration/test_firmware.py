"""What guests boot with: UEFI, with secure boot, and a TPM, each with a memory of its own that moves with the VM."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until

NewVm = Callable[..., dict[str, Any]]
LOOK = """#! hostile
mkdir -p /vars; mount -t efivarfs none /vars
{
  [ -d /sys/firmware/efi ] && echo found-uefi
  echo "found-secure $(tail -c 1 /vars/SecureBoot-* | od -An -tu1 | tr -d ' ')"
  for tpm in /sys/class/tpm/tpm*; do echo "found-tpm $(cat $tpm/tpm_version_major)"; done
  echo found-all
} > /dev/console 2>&1
"""
BOOT_S = 110.0


@pytest.fixture(autouse=True)
def offered(site: Platform) -> None:
    inventory = site.client.get("nodes", "host-a")["status"]["inventory"]
    assert set(inventory["firmware"]) == {"bios", "uefi", "uefi-secure"} and inventory["tpm"]


def seen(site: Platform, vm: dict[str, Any]) -> set[str]:
    def found() -> set[str]:
        text = site.console_log(site.client.get("vms", vm["id"]))
        words = set(re.findall(r"^(?:/ # )?(?:\x1b\[6n)?(found-[^\r\n]*)", text, re.M))
        return words if "found-all" in words else set()

    found_: set[str] = until(found, "the guest has looked at what it booted with", BOOT_S)
    return found_


def directory(site: Platform, vm: dict[str, Any]) -> Path:
    return site.directory / str(site.client.get("vms", vm["id"])["node"]) / "agent" / "vms" / str(vm["id"])


@pytest.mark.parametrize("firmware", ["uefi", pytest.param("uefi-secure", marks=pytest.mark.slow)])
def test_a_guest_boots_with_uefi_and_a_tpm_whose_state_moves_with_it(
    site: Platform, new_vm: NewVm, firmware: str
) -> None:
    vm = new_vm(
        image="agent", firmware=firmware, tpm=True, memory_mib=256, node="host-a", cloud_init={"user_data": LOOK}
    )
    secure = "1" if firmware == "uefi-secure" else "0"
    assert {"found-uefi", "found-tpm 2", f"found-secure {secure}"} <= seen(site, vm)
    assert "q35" in site.client.get("vms", vm["id"])["status"]["machine"]
    site.cli("vm", "kill", vm["name"], "--wait")
    before = {name: (directory(site, vm) / name).read_bytes() for name in ("nvram.fd", "tpm/tpm2-00.permall")}
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert site.client.get("vms", vm["id"])["node"] == "host-b"
    assert {name: (directory(site, vm) / name).read_bytes() for name in before} == before
    if firmware == "uefi":
        site.cli("vm", "start", vm["name"], "--wait")
        until(lambda: "found-tpm 2" in site.console_log(site.client.get("vms", vm["id"])), "it boots there", BOOT_S)


@pytest.mark.slow
def test_a_running_guest_moves_with_its_uefi_and_tpm(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(image="agent", firmware="uefi", tpm=True, memory_mib=256, node="host-a", cloud_init={"user_data": LOOK})
    seen(site, vm)
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    now = site.wait_state(vm["id"], "running")
    assert now["node"] == "host-b"
    until(lambda: (directory(site, vm) / "tpm/tpm2-00.permall").exists(), "what the TPM remembers is there")


def test_a_vm_with_firmware_that_never_ran_can_move(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(image="tiny", firmware="uefi", tpm=True, node="host-a", power="stopped")
    site.wait_state(vm["id"], "stopped")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert site.client.get("vms", vm["id"])["node"] == "host-b"


@pytest.mark.slow
def test_firmware_tpm_and_user_data_change_while_a_vm_is_off(site: Platform, new_vm: NewVm, tmp_path: Path) -> None:
    vm = new_vm(image="agent", memory_mib=256, node="host-a", cloud_init={"user_data": LOOK})
    assert not {"found-uefi", "found-tpm 2"} & seen(site, vm)
    again = tmp_path / "again"
    again.write_text(LOOK.replace("found-", "seen-"))
    with pytest.raises(AssertionError, match="stop it explicitly"):
        site.cli("vm", "set", vm["name"], "--firmware", "uefi")
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "set", vm["name"], "--firmware", "uefi", "--tpm", "--no-display", "--user-data", str(again))
    site.cli("vm", "start", vm["name"], "--wait")
    now = site.client.get("vms", vm["id"])

    def lines() -> list[str]:
        return re.findall(r"^(?:/ # )?(?:\x1b\[6n)?(seen-[^\r\n]*)", site.console_log(now), re.M)

    until(lambda: "seen-all" in lines(), "it boots with UEFI", BOOT_S)
    assert {"seen-uefi", "seen-tpm 2"} <= set(lines())
    assert "q35" in now["status"]["machine"] and now["spec"]["display"] == "none"
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "set", vm["name"], "--firmware", "bios", "--no-tpm", "--display")
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: lines().count("seen-all") == 2, "it boots with a BIOS again", BOOT_S)
    assert "q35" not in site.client.get("vms", vm["id"])["status"]["machine"]
