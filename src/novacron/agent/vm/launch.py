"""What QEMU is started with: files and sockets opened for it, and the configuration made of them and the VM's spec."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron import private_file
from novacron.agent.host.dedicated_cpus import DedicatedCpus, TooFewCpus
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import firmware_state, keys, media, nvram
from novacron.agent.vm.console_log import ConsoleLog
from novacron.agent.vm.directory import DISK_LAYER, RESTORE_SOCKET, VmDirectory
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.interfaces import Interfaces
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.tpm import Tpm, TpmFailed
from novacron.disk import cloud_init
from novacron.disk.images import LocalImage
from novacron.disk.qemu_img import ImgFailed
from novacron.model.cloud_init import Seed
from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.guest_hardware import GuestHardware
from novacron.model.node import AcceleratorKind
from novacron.model.vm import BLANK_IMAGE, Display, Firmware, VmSpec
from novacron.qemu import command, confine, firmware, peripherals
from novacron.qemu.boot import BootPlan
from novacron.qemu.command import QemuCd, QemuConfig, QemuKey, QemuVolume
from novacron.qemu.firmware import MACHINES
from novacron.qemu.guest_memory import MemoryLayout
from novacron.qemu.nics import QemuNic
from novacron.qemu.vfio import MEMLOCK_BESIDE_BYTES
from novacron.wire import messages as wire

SEED, DEVICES = "seed.iso", "devices.json"


class LaunchFailed(Exception):
    """Something that QEMU needs is not to be had: says what."""


class StartRequest(msgspec.Struct, frozen=True):
    """What a VM is started as."""

    assignment: wire.Assignment
    image: LocalImage
    accelerator: AcceleratorKind
    machine: str
    """QEMU's machine type; empty: the newest that this QEMU has."""
    volumes: Callable[[], list[QemuVolume]]
    """Returns the volumes that it starts with, open; called in a thread. Raises OSError."""
    incoming: bool
    """QEMU waits for the memory of a guest that runs elsewhere."""
    paused: bool = False
    """The guest does not boot yet: it is to have the memory of a snapshot, or its start is noted first."""
    media: dict[str, LocalImage] = {}
    """The images that it uses beside its own, by name."""

    def machine_type(self) -> str:
        return self.machine or MACHINES[self.assignment.spec.firmware]

    def hardware(self) -> GuestHardware:
        """Return the processors and the memory to start with: what a guest that comes here has already grown to."""
        if self.incoming and self.assignment.hardware:
            return self.assignment.hardware
        spec = self.assignment.spec
        return GuestHardware(spec.vcpus, spec.memory_mib, balloon=spec.hugepages is HugePages.NONE)

    def nic_ports(self) -> int:
        """Return how many ports for interfaces to have: as many as a guest that comes here has."""
        if self.incoming:
            has = self.hardware().nics
            return 0 if has is None else has.ports
        return self.assignment.nic_ports


class Inherited(msgspec.Struct, frozen=True):
    """What was opened for QEMU, by the numbers under which it inherits it, and what was chosen on this host."""

    nics: tuple[QemuNic, ...]
    volumes: tuple[QemuVolume, ...]
    devices: tuple[str, ...]
    monitor: int
    console: int
    guest: int
    kernel: int | None
    initrd: int | None
    seed: int | None
    firmware: int | None
    below: int | None
    shared: tuple[int, ...]
    keys: tuple[QemuKey, ...] = ()
    cds: tuple[QemuCd, ...] = ()
    restored_from: str = ""
    """The agent's socket for the rest of a disk that is still in its repository; empty: all of it is here."""
    console_log: int | None = None
    """None: QEMU opens ``console.log`` itself."""
    serials: tuple[int, ...] = ()
    memory: MemoryLayout = MemoryLayout()


def qemu_config(vm: str, binary: str, request: StartRequest, inherited: Inherited) -> QemuConfig:
    """Return the configuration of a VM's QEMU. Pure: a field of the spec that QEMU needs is added here."""
    spec, image, hardware = request.assignment.spec, request.image, request.hardware()
    return QemuConfig(
        id=vm,
        directory=Path(),
        binary=binary,
        machine=request.machine_type(),
        accelerator=request.accelerator,
        cpu=request.assignment.cpu,
        vcpus=hardware.vcpus,
        memory_mib=hardware.memory_mib,
        balloon=hardware.balloon,
        vcpus_max=spec.vcpus_max,
        memory_max_mib=spec.memory_max_mib,
        kernel=_inherited_path(inherited.kernel),
        initrd=_inherited_path(inherited.initrd),
        cmdline=spec.kernel_arguments if spec.kernel else image.cmdline + _address_for(spec),
        disk=None if image.disk is None else Path(DISK_LAYER),
        secure=spec.firmware is Firmware.UEFI_SECURE,
        tpm=spec.tpm,
        display=spec.display is not Display.NONE,
        nics=inherited.nics,
        volumes=inherited.volumes,
        devices=inherited.devices,
        monitor=inherited.monitor,
        console=inherited.console,
        console_log=inherited.console_log,
        guest=inherited.guest,
        seed=inherited.seed,
        firmware=inherited.firmware,
        below=inherited.below,
        shared=inherited.shared,
        keys=inherited.keys,
        below_key="" if image.disk is None else image.encryption_key,
        disk_key="" if image.disk is None else spec.encryption_key,
        nvram_key="" if spec.firmware is Firmware.BIOS else spec.encryption_key,
        disk_bus=spec.disk_bus,
        boot=BootPlan.of(spec),
        cds=inherited.cds,
        nic_model=spec.nic_model,
        nic_ports=request.nic_ports(),
        slots=() if hardware.nics is None else hardware.nics.slots,
        smbios={"manufacturer": spec.smbios_manufacturer, "serial": spec.smbios_serial, "asset": spec.smbios_asset_tag},
        windows=spec.os.is_windows,
        restored_from=inherited.restored_from,
        serials=inherited.serials,
        usb=spec.usb,
        memory=inherited.memory,
    )


def _looks_for_seed(image: LocalImage) -> bool:
    """Say whether the guests of an image may look for the CD of their first boot, though it holds only a name."""
    return image.kernel is None and image.info.name != BLANK_IMAGE


def _inherited_path(descriptor: int | None) -> Path | None:
    return None if descriptor is None else confine.inherited_path(descriptor)


def _address_for(spec: VmSpec) -> str:
    """Return the kernel arguments with a guest's addresses, for images without a disk."""
    if spec.nics:
        return " novacron.address=dhcp"
    return f" novacron.address={spec.address}" if spec.address else ""


def confined_command(arguments: list[str], spec: VmSpec, uid: int | None, kind: AcceleratorKind) -> list[str]:
    """Return QEMU's command as the VM's own user runs it; None: as the agent's."""
    if uid is None:
        return arguments
    locked_bytes = (spec.memory_mib << 20) + MEMLOCK_BESIDE_BYTES if spec.devices else None
    account = confine.account(uid, kind)
    return confine.confined(arguments, account, dies_with_parent=spec.ha, memlock_bytes=locked_bytes)


class Opener:
    """Opens what QEMU inherits, as a context manager: all of it is closed at the end of the block."""

    def __init__(self, home: VmDirectory) -> None:
        self.descriptors: list[int] = []
        self._home = home
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hand(self, descriptor: int) -> int:
        """Let QEMU inherit a descriptor that is open."""
        self._stack.callback(os.close, descriptor)
        self.descriptors.append(descriptor)
        return descriptor

    def listen(self, path: Path) -> int:
        return self.hand(self._home.listen(path.name).detach())

    def read(self, path: Path) -> int:
        return self.hand(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read_if_any(self, path: Path | None) -> int | None:
        return None if path is None else self.read(path)


def _hand_keys(request: StartRequest, opener: Opener) -> tuple[QemuKey, ...]:
    """Let QEMU inherit the keys of a VM's encrypted disks, each in a file in memory. Raises LaunchFailed, OSError."""
    assignment = request.assignment
    try:
        keys.check_all(assignment)
        for image in (request.image, *request.media.values()):
            keys.image_key(assignment, image)
    except KeyMissing as error:
        raise LaunchFailed(str(error)) from error
    return tuple(
        QemuKey(key.id, opener.hand(private_file.in_memory(key.id, key.passphrase()))) for key in assignment.keys
    )


class HostParts(NamedTuple):
    """What of this host one VM has and no other."""

    passthrough: Passthrough
    cpus: DedicatedCpus


class Launch:
    """Prepares the starts of one VM."""

    def __init__(
        self, vm: str, home: VmDirectory, settings: AgentSettings, interfaces: Interfaces, parts: HostParts
    ) -> None:
        self._vm, self._home, self._settings = vm, home, settings
        self._interfaces, (self._passthrough, self._cpus) = interfaces, parts
        self.tpm = Tpm(home)
        self.console_log = ConsoleLog(home.path, vm)

    async def prepare(self, request: StartRequest, uid: int | None, opener: Opener) -> list[str]:
        """Open what QEMU needs, and return its command. Raises LaunchFailed, NetworkFailed, DeviceFailed, OSError."""
        spec, directory = request.assignment.spec, self._home.path
        if request.image.disk is not None:
            self._home.give(DISK_LAYER)
        came = request.hardware().nics if request.incoming else None
        nics = await self._interfaces.make(spec, opener.hand, came)
        handed = _hand_keys(request, opener)
        seed = await self._seed(request, nics, opener)
        volumes = await asyncio.to_thread(request.volumes)
        for volume in volumes:
            opener.hand(volume.descriptor)
        code = await self._firmware(request)
        if spec.tpm:
            try:
                await self.tpm.start(uid, request.accelerator, keys.disk_key(request.assignment))
            except TpmFailed as error:
                raise LaunchFailed(str(error)) from error
        image = request.image
        restoring = image.disk is not None and self._home.is_restoring()
        if restoring and not (directory / RESTORE_SOCKET).exists():
            raise LaunchFailed(
                "a part of its disk is still in a backup, from which it is not being restored: delete the VM, and"
                " restore the backup again"
            )
        host_cells = await asyncio.to_thread(self._take_cpus, spec)
        inherited = Inherited(
            nics=nics,
            volumes=tuple(volumes),
            devices=await asyncio.to_thread(self._take_devices, request.assignment, uid),
            monitor=opener.listen(command.monitor_path(directory)),
            console=opener.listen(command.console_path(directory)),
            console_log=await self._console_log(request.assignment, opener),
            serials=tuple(
                opener.listen(peripherals.serial_path(directory, 1 + number)) for number in range(spec.serial_ports)
            ),
            guest=opener.listen(command.guest_path(directory)),
            kernel=await self._boot_file(request, spec.kernel, image.kernel, opener),
            initrd=await self._boot_file(request, spec.initrd, image.initrd, opener),
            seed=seed,
            firmware=opener.read_if_any(code),
            below=opener.read_if_any(image.disk),
            shared=() if image.disk is None else tuple(opener.read(path) for path in self._home.shared()),
            keys=handed,
            restored_from=RESTORE_SOCKET if restoring else "",
            memory=MemoryLayout(spec.numa_nodes, spec.hugepages, host_cells),
            cds=tuple(media.drive(spec, number, request.media, opener.read) for number in range(len(spec.cdroms))),
        )
        config = qemu_config(self._vm, self._settings.qemu_binary, request, inherited)
        arguments = command.command(config, incoming=request.incoming, paused=request.paused)
        return confined_command(arguments, spec, uid, request.accelerator)

    async def _boot_file(
        self, request: StartRequest, named: str | None, own: Path | None, opener: Opener
    ) -> int | None:
        """Return a kernel or an initial RAM disk, open: the one that the spec names, or that of the VM's image."""
        if not request.assignment.spec.kernel:
            return opener.read_if_any(own)
        try:
            return await media.boot_file(request.media, named, request.assignment, opener)
        except (KeyMissing, ImgFailed) as error:
            raise LaunchFailed(str(error)) from error

    async def _console_log(self, assignment: wire.Assignment, opener: Opener) -> int | None:
        """Return the file in memory for what the guest prints; None: it may lie on the disk as it is."""
        descriptor = await asyncio.to_thread(self.console_log.begin, keys.disk_key(assignment))
        if descriptor is not None:
            return opener.hand(descriptor)
        self._home.give(command.console_log_path(self._home.path).name)
        return None

    async def _seed(self, request: StartRequest, nics: tuple[QemuNic, ...], opener: Opener) -> int | None:
        """Make the CD for the guest's first boot, if it has one, and return it, open; that of a VM whose disk is
        encrypted is in memory only."""
        assignment = request.assignment
        if assignment.seed is None and not _looks_for_seed(request.image):
            return None
        content = await asyncio.to_thread(
            cloud_init.seed_cd,
            assignment.seed or Seed(),
            id=self._vm,
            name=assignment.name,
            macs=[nic.mac for nic in nics],
            address=assignment.spec.address,
        )
        if assignment.spec.encryption_key:
            return opener.hand(private_file.in_memory(SEED, content))
        path = self._home.path / SEED
        await asyncio.to_thread(cloud_init.build, path, content)
        return opener.read(path)

    async def _firmware(self, request: StartRequest) -> Path | None:
        """Return the code of the VM's firmware, None for a BIOS, and see to its variables. Raises LaunchFailed."""
        assignment = request.assignment
        files, begins = firmware.files(assignment.spec.firmware), None
        try:
            if assignment.firmware_state is not None:
                begins = await asyncio.to_thread(
                    firmware_state.unpack, self._home, assignment.spec, assignment.firmware_state
                )
            if assignment.spec.firmware is Firmware.BIOS:
                return None
            if files is None:
                kind = assignment.spec.firmware
                raise LaunchFailed(f"this node has no firmware {kind}: apt-get install {firmware.PACKAGE}")
            code, variables = files
            await nvram.have(self._home, begins or variables, keys.disk_key(assignment))
        except (BadState, ImgFailed) as error:
            raise LaunchFailed(str(error)) from error
        return code

    def _take_cpus(self, spec: VmSpec) -> tuple[int | None, ...]:
        """Take the CPUs of this host that a VM has for itself, if it has any; return where its memory is to be.

        Raises LaunchFailed, OSError.
        """
        if spec.cpu_policy is not CpuPolicy.DEDICATED:
            return ()
        try:
            return self._cpus.take(self._vm, spec.vcpus, spec.numa_nodes)
        except TooFewCpus as error:
            raise LaunchFailed(str(error)) from error

    def _take_devices(self, assignment: wire.Assignment, uid: int | None) -> tuple[str, ...]:
        """Take the devices of this host that a VM has. Raises DeviceFailed, OSError."""
        if not assignment.spec.devices:
            return ()
        devices = self._passthrough.choose(self._vm, assignment.spec.devices, assignment.passthrough)
        (self._home.path / DEVICES).write_bytes(msgspec.json.encode(devices))
        self._passthrough.vfio.bind(devices, uid)
        return devices

    def note_devices(self) -> None:
        """An earlier agent's QEMU goes on: note which devices of this host it has."""
        with contextlib.suppress(OSError, ValueError):
            devices = msgspec.json.decode((self._home.path / DEVICES).read_bytes(), type=tuple[str, ...])
            self._passthrough.has(self._vm, devices)
