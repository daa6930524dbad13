# Made of aio/vms.py by script/generate: change that, and run it.
"""Calls about VMs and their snapshots, consoles and exports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron.client import protocol
from novacron.client.protocol import Object, quoted, without_none
from novacron.client.sync.connection import Connection

if TYPE_CHECKING:
    from novacron.client.console import Console


class VmCalls(Connection):
    """VMs: create, change, snapshot, look at and export them."""

    def create_vm(self, **fields: object) -> Object:
        """Create a VM; fields as in ``POST /api/v1/vms``, those that are None left out."""
        return self._object("POST", "/api/v1/vms", without_none(fields))

    def create_vms(self, items: Sequence[Object]) -> Object:
        """Create up to 100 VMs at once; ``items`` of the answer has the result of each, in order."""
        return self._object("POST", "/api/v1/vms/batch", {"items": items})

    def configure_vm(self, ref: str, **changes: object) -> Object:
        """Change a VM; fields as in ``PATCH /api/v1/vms/{ref}``."""
        return self._object("PATCH", f"/api/v1/vms/{quoted(ref)}", changes)

    def configure_vms(self, items: Sequence[Object]) -> Object:
        """Change up to 100 VMs at once: each item has ``vm`` and ``changes``."""
        return self._object("PUT", "/api/v1/vms/batch", {"items": items})

    def delete_vms(self, refs: Sequence[str]) -> Object:
        """Delete up to 100 VMs at once."""
        return self._object("DELETE", "/api/v1/vms/batch", {"vms": list(refs)})

    def adopt_vm(self, ref: str, **how: object) -> Object:
        """Take an unreconciled VM into the database as its node knows it; fields as in
        ``POST /api/v1/unreconciled-vms/{ref}/actions/adopt``, those that are None left out."""
        return self._object("POST", f"/api/v1/unreconciled-vms/{quoted(ref)}/actions/adopt", without_none(how))

    def forget_vm(self, ref: str, confirm: str) -> None:
        """Let nodes end what they have of an unreconciled VM, because the database is right; ``confirm`` is its
        name."""
        self.request("POST", f"/api/v1/unreconciled-vms/{quoted(ref)}/actions/forget", {"confirm": confirm})

    def delete_lost_vm(self, ref: str, confirm: str | None = None) -> None:
        """Delete a VM whose node is gone; unless the node was fenced or removed, ``confirm`` is the node's name, as a
        word that its host is off."""
        query = protocol.query({"force": "true", **({"confirm": confirm} if confirm else {})})
        self.request("DELETE", f"/api/v1/vms/{quoted(ref)}?{query}")

    def recover_vm(self, ref: str, confirm: str | None = None, discard_disk: bool = False) -> Object:
        """Let a VM run again whose node is gone; ``confirm`` as for ``delete_lost_vm``. ``discard_disk``: begin with a
        new disk if the old one was on that node only."""
        return self.act("vms", ref, "recover", {"confirm": confirm, "discard_disk": discard_disk})

    def clone_vm(self, ref: str, name: str, **fields: object) -> Object:
        """Create a VM like another; fields as in ``POST /api/v1/vms/{ref}/actions/clone``."""
        return self.act("vms", ref, "clone", {"name": name, **without_none(fields)})

    def placement(self, ref: str) -> Sequence[Object]:
        """Return a verdict on each node to which a VM could be moved now, the best first."""
        verdicts: Sequence[Object] = (self._object("GET", f"/api/v1/vms/{quoted(ref)}/placement"))["items"]
        return verdicts

    def foresee_placement(self, **fields: object) -> Sequence[Object]:
        """Return a verdict on each node where ``create_vm`` could place a VM with these fields, the best first."""
        verdicts: Sequence[Object] = (self._object("POST", "/api/v1/placements", fields))["items"]
        return verdicts

    def open_console(self, ref: str, kind: str = "serial", serial: int = 0) -> Console:
        """Open a VM's console: a serial port (0 is the first one), or its ``display`` (VNC).

        Raises ApiError, Unreachable.

        A console runs in a thread of its own, and its methods block.
        """
        from novacron.client.console import Console

        ticket = self.act("vms", ref, "open-console", {"kind": kind, **({"serial": serial} if serial else {})})
        url = self.config.url.replace("https://", "wss://") + ticket["path"]
        return self._transport.run(Console, url, self.config.ca)

    def open_port(self, ref: str, port: int = 22) -> Console:
        """Open a TCP connection to a VM, through its node: no route to it is needed. Raises ApiError, Unreachable.

        Like a console, it runs in a thread of its own, and its methods block. ``send(b"")`` says that no more comes.
        """
        from novacron.client.console import Console

        ticket = self.act("vms", ref, "open-port", {"port": port})
        url = self.config.url.replace("https://", "wss://") + ticket["path"]
        return self._transport.run(Console, url, self.config.ca)

    def vm_usage(self, vm: str | None = None) -> list[Object]:
        """Return what each running VM, or one, has used since its QEMU began: two looks make a rate."""
        asked = "" if vm is None else f"?{protocol.query({'vm': vm})}"
        usages: list[Object] = (self._object("GET", f"/api/v1/vm-usage{asked}"))["items"]
        return usages

    def vm_load(self, ref: str, days: int = 14) -> list[Object]:
        """Return what a VM used in each hour of the last days that is known."""
        path = f"/api/v1/vms/{quoted(ref)}/load?{protocol.query({'days': str(days)})}"
        hours: list[Object] = (self._object("GET", path))["items"]
        return hours

    def console_log(self, vm: str, bytes_max: int = 64 * 1024) -> bytes:
        """Return the end of what a VM printed on its serial line. It comes from the guest: it may hold anything."""
        return self.fetch(f"/api/v1/vms/{quoted(vm)}/console-log?bytes={bytes_max}")

    def screenshot(self, vm: str) -> bytes:
        """Return what a VM's display shows, as a PNG file."""
        return self.fetch(f"/api/v1/vms/{quoted(vm)}/screenshot")

    def create_snapshot(self, vm: str, name: str, memory: bool = False, quiesce: bool = False) -> Object:
        """Begin to take a snapshot. ``wait("snapshots", id, ...)`` waits until it is ``ready`` or ``failed``."""
        body = {"name": name, "memory": memory, "quiesce": quiesce}
        return self._object("POST", f"/api/v1/vms/{quoted(vm)}/snapshots", body)

    def revert_snapshot(self, vm: str, name: str) -> Object:
        """Begin to revert a VM to a snapshot; the snapshot is ``ready`` again once that is done."""
        return self._object("POST", f"/api/v1/vms/{quoted(vm)}/snapshots/{quoted(name)}/actions/revert")

    def add_nic(self, vm: str, network: str, **fields: object) -> Object:
        """Add an interface, also while the VM runs: ``address``, ``mac``, ``groups``, as far as they are not None."""
        return self._object(
            "POST", f"/api/v1/vms/{quoted(vm)}/nics", {"network": network, **without_none(fields)}
        )  # fmt: skip

    def configure_nic(self, vm: str, mac: str, **changes: object) -> Object:
        """Change an interface's ``network``, ``address`` or ``groups``, also while the VM runs."""
        return self._object("PATCH", f"/api/v1/vms/{quoted(vm)}/nics/{quoted(mac)}", changes)

    def remove_nic(self, vm: str, mac: str) -> Object:
        """Take an interface from a VM, which may run."""
        return self._object("DELETE", f"/api/v1/vms/{quoted(vm)}/nics/{quoted(mac)}")

    def configure_snapshot(self, vm: str, name: str, **changes: object) -> Object:
        """Change a snapshot's ``display_name``, ``description`` or ``tags``."""
        return self._object("PATCH", f"/api/v1/vms/{quoted(vm)}/snapshots/{quoted(name)}", changes)

    def delete_snapshot(self, vm: str, name: str) -> Object:
        """Begin to delete a snapshot; it is gone once that is done."""
        return self._object("DELETE", f"/api/v1/vms/{quoted(vm)}/snapshots/{quoted(name)}")

    def export_data(self, id: str, offset: int) -> bytes:
        """Return a piece of an export's file. ``archive.export`` fetches it whole."""
        return self.fetch(f"/api/v1/exports/{quoted(id)}/data?offset={offset}")

    def export_firmware_state(self, id: str) -> Object:
        """Return the state of an exported VM's firmware and TPM; ``create_vm`` takes it. It is secret."""
        return self._object("GET", f"/api/v1/exports/{quoted(id)}/firmware-state")
