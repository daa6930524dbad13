"""What a guest boots with: a BIOS, or UEFI with variables of its own, and a TPM that is a process beside QEMU."""

from __future__ import annotations

import shutil
from pathlib import Path

from novacron.model.vm import Firmware

MACHINES = {Firmware.BIOS: "pc", Firmware.UEFI: "q35", Firmware.UEFI_SECURE: "q35"}
"""Machine type that a VM gets: only "q35" protects UEFI's variables from the guest's own kernel (SMM)."""
FILES = {
    Firmware.UEFI: (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ),
    Firmware.UEFI_SECURE: (("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),),
}
"""Where distributions have the code, and the variables that a new VM begins with."""
PACKAGE = "ovmf"
NVRAM = "nvram.fd"
TPM, TPM_SOCKET, TPM_STATE = "swtpm", "run/tpm.sock", "tpm"
TPM_FILE = f"{TPM_STATE}/tpm2-00.permall"
"""What a TPM 2.0 remembers."""


def files(firmware: Firmware) -> tuple[Path, Path] | None:
    """Return the code and the variables of a firmware, None where this host lacks it."""
    for code, variables in FILES.get(firmware, ()):
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    return None


def machine_of(machine: str, firmware: Firmware) -> str:
    """Return the machine type that a VM was started with, if its firmware can have it; empty: it takes a new one."""
    return machine if ("q35" in machine) == (MACHINES[firmware] == "q35") else ""


def offered() -> tuple[Firmware, ...]:
    """Return what VMs can have on this host."""
    return (Firmware.BIOS, *(firmware for firmware in FILES if files(firmware) is not None))


def has_tpm() -> bool:
    return shutil.which(TPM) is not None


def tpm_command(key: int | None) -> list[str]:
    """Return the arguments of a TPM 2.0, run in the VM's directory; it ends with its QEMU. ``key`` is the descriptor of
    a file with the key of its state, None for one that is not encrypted."""
    return [
        *(TPM, "socket", "--tpm2", "--tpmstate", f"dir={TPM_STATE},mode=0600"),
        *("--ctrl", f"type=unixio,path={TPM_SOCKET},mode=0600", "--terminate"),
        *(() if key is None else ("--key", f"fd={key},mode=aes-256-cbc,format=hex")),
    ]
