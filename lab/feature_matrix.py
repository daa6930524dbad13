"""What becomes of each feature of a VM in each operation: one table, which makes a page and which tests try.

``tests/integration/test_feature_matrix.py`` does what each cell says against the store, or asks what QEMU gets, and in
the slow matrix against real QEMU.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from novacron.model.devices import DiskBus, NicModel, UsbDevice


class Operation(StrEnum):
    """What is done with a VM."""

    LIVE = "live migration"
    WARM = "warm migration"
    COLD = "migration while off"
    CLONE = "clone"
    TEMPLATE = "VM from a template of it"
    SNAPSHOT = "snapshot with memory, revert"
    EXPORT = "export, import"
    BACKUP = "backup, restore"
    AGENT = "restart of the agent"
    HOST = "restart of the host"


MOVES = (Operation.LIVE, Operation.WARM, Operation.COLD)


class Fate(StrEnum):
    """What becomes of a feature."""

    KEPT = "kept"
    REFUSED = "refused"
    """The operation is refused when it is requested, with an error of this ``code``."""
    LEFT_OUT = "left out"
    """The operation works, and what comes out of it does not have the feature."""


class Cell(NamedTuple):
    """What becomes of a feature in an operation. ``code``: of the error (``docs/reference/api.md``) of a refusal;
    ``unless``: of a feature that is kept, what it is refused without; ``why``: why it is left out."""

    fate: Fate = Fate.KEPT
    code: str = ""
    unless: str = ""
    why: str = ""

    def words(self) -> str:
        if self.fate is Fate.REFUSED:
            return f"refused (`{self.code}`)"
        if self.fate is Fate.LEFT_OUT:
            return f"left out: {self.why}"
        return f"kept; refused (`{self.code}`) if {self.unless}" if self.unless else "kept"


class Feature(NamedTuple):
    """A feature: the fields of ``POST /api/v1/vms`` that give it to a VM, and what becomes of it where it is not simply
    kept."""

    name: str
    fields: Mapping[str, object]
    cells: Mapping[Operation, Cell] = {}
    real: bool = True
    """The slow matrix tries it on real QEMU."""

    def cell(self, operation: Operation) -> Cell:
        return self.cells.get(operation, Cell())


def _refused(code: str) -> Cell:
    return Cell(Fate.REFUSED, code)


def _left_out(why: str) -> Cell:
    return Cell(Fate.LEFT_OUT, why=why)


def _unless(what: str, *operations: Operation) -> dict[Operation, Cell]:
    """Return that a feature is kept where a node has something, else refused for want of it."""
    return dict.fromkeys(operations, Cell(code="no-capacity", unless=what))


_NEW_ADDRESS = _left_out("the new VM gets an address of its own")
_NETWORK_CHOSEN = _left_out("the import names the networks")
_ONE_START = _left_out("it applies to one start of that VM")
_OWN_DISK_ONLY = _left_out("only the VM's own disk")
_PLACES = (*MOVES, Operation.CLONE, Operation.BACKUP)

FEATURES = (
    *(Feature(f"disk bus `{bus}`", {"disk_bus": bus.value}) for bus in DiskBus),
    *(Feature(f"NIC model `{model}`", {"nic_model": model.value}) for model in NicModel),
    Feature("position of the disk in the boot order", {"disk_boot_order": 5}),
    Feature("network boot", {"network_boot_order": 9}),
    Feature("boot once", {"boot_once": "disk"}, dict.fromkeys(
        (Operation.CLONE, Operation.TEMPLATE, Operation.EXPORT, Operation.BACKUP), _ONE_START
    )),
    Feature("CD-ROM drive with an ISO", {"cdroms": [{"iso": "cd", "boot_order": 3}]}, {
        **_unless("the node does not hold the ISO", *MOVES),
        Operation.EXPORT: _left_out("the drive is kept, empty: its ISO may not be there"),
    }),
    Feature("empty CD-ROM drive", {"cdroms": [{"iso": None, "boot_order": 4}]}),
    Feature("own kernel", {"kernel": "linux", "kernel_arguments": "quiet"}, {
        **_unless("the node does not hold the kernel", *MOVES), Operation.EXPORT: _refused("illegal-state"),
    }, real=False),
    Feature("serial ports", {"serial_ports": 2}),
    Feature("USB devices", {"usb": [kind.value for kind in UsbDevice]}),
    Feature("SMBIOS manufacturer", {"smbios_manufacturer": "Example"}),
    Feature("SMBIOS serial number", {"smbios_serial": "A-17"}, {
        Operation.TEMPLATE: _left_out("each VM has its own"),
    }),
    Feature("NUMA nodes", {"vcpus": 2, "numa_nodes": 2}),
    Feature("dedicated CPUs", {"cpu_policy": "dedicated"}, _unless("the node has too few CPUs", *_PLACES)),
    Feature("huge pages", {"hugepages": "2M"}, _unless("the node has too few", *_PLACES), real=False),
    Feature("UEFI and TPM", {"firmware": "uefi", "tpm": True},
            _unless("the node has no such firmware or no TPM", *_PLACES), real=False),
    Feature("PCI device of the host", {"devices": ["8086:10fb"]}, {
        Operation.LIVE: _refused("illegal-state"), Operation.WARM: _refused("illegal-state"),
        Operation.SNAPSHOT: _refused("illegal-state"), **_unless("the node has none to give", Operation.COLD),
        Operation.CLONE: Cell(code="no-capacity", unless="the node has none to give"),
        Operation.EXPORT: _left_out("it means nothing elsewhere"),
        Operation.BACKUP: Cell(code="no-capacity", unless="the node has none to give"),
    }, real=False),
    Feature("IPv4 address in a network", {"nics": [{"network": "lan", "address": "10.23.0.50"}]}, {
        Operation.CLONE: _NEW_ADDRESS, Operation.TEMPLATE: _NEW_ADDRESS, Operation.EXPORT: _NETWORK_CHOSEN,
        Operation.BACKUP: _NEW_ADDRESS,
    }),
    Feature("IPv6 address in a network", {"nics": [{"network": "six", "address6": "fd23:0:0:6::50"}]}, {
        Operation.CLONE: _NEW_ADDRESS, Operation.TEMPLATE: _NEW_ADDRESS, Operation.EXPORT: _NETWORK_CHOSEN,
        Operation.BACKUP: _NEW_ADDRESS,
    }),
    Feature("VLAN of a host bridge", {"nics": [{"network": "vlan-40"}]}, {
        **_unless("the node has no such bridge that filters VLANs", *_PLACES),
        Operation.EXPORT: _NETWORK_CHOSEN,
    }, real=False),
    Feature("further disk (a volume)", {"disks": [{"size_mib": 8}]}, dict.fromkeys(
        (Operation.CLONE, Operation.TEMPLATE, Operation.SNAPSHOT, Operation.EXPORT, Operation.BACKUP), _OWN_DISK_ONLY
    ), real=False),
    Feature("tags, description, display name", {
        "tags": ["blue"], "description": "of the matrix", "display_name": "Matrix",
    }, {Operation.TEMPLATE: _left_out("each VM has its own")}),
)  # fmt: skip


def page() -> str:
    """Return the page with the whole table."""
    head = ["feature", *Operation]
    lines = [head, ["---"] * len(head)]
    lines += [[feature.name, *(feature.cell(operation).words() for operation in Operation)] for feature in FEATURES]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{HEAD}\n{table}\n\n{TAIL}"


HEAD = """# What VMs keep

What becomes of each feature of a VM in each operation. "Kept": it is the same afterwards. "Refused": the operation is
refused when it is requested, with this code and the reason in words; nothing has changed then. "Left out": the
operation works without it. This table is generated; tests do what each cell says. [Devices](devices.md) says when each
can change.
"""
TAIL = """A snapshot without memory keeps the VM's own disk, whatever the VM has. After a change of the VM's hardware,
snapshots with its memory would not fit any more, so such a change is refused while there is one.
`novacron vm placement VM` lists which nodes could take a VM now, and why others could not.
"""
