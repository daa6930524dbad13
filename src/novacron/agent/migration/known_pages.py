"""Pages that this node has before a VM arrives: of images, of running VMs, and of VMs that were here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from novacron.agent.migration import replica_pages
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.tenant import Tenant
from novacron.disk.blocks import data_places, pages_of, places
from novacron.disk.errors import Unacceptable
from novacron.disk.images import LocalImage
from novacron.dwcp.page_codec import DIGEST_BYTES, Base, PageHash
from novacron.dwcp.page_store import ZERO_PAGE, FileBase, PageStore, ScatteredBase, index_of, read_index
from novacron.qemu.memory import PAGE, GuestMemory
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs

log = logs.get(__name__)

IMAGE, SIBLING, CHECKPOINT = "image", "sibling", "checkpoint"
DISK = "disk"
"""Kind of store in which a VM's own layer of its disk is kept."""
CHECKPOINT_INDEX = "left"
"""Kind of store with only an index: that of the checkpoint which another node keeps of a VM. Its name is on disk."""
SIBLINGS_MAX = 1
SIBLING_PAGES_MAX = 131_072
"""Distinct pages of one running VM that a survey holds: 512 MiB, read in about half a second."""
SURVEYS_MAX = 8
"""Surveys that are held, each for one image and project."""
SURVEY_AGAIN_S, SURVEY_AGAIN_S_MAX = 20.0, 600.0
"""When a VM is surveyed again, twice as late each time: a guest that has just booted still changes."""
OTHER_CHECKPOINTS_MAX = 1
IMAGE_DIGESTS_BYTES_MAX = 256 * 1024**2
"""Memory for the digests of images, each for a project: 7 GiB of images. The least recently used go first; they are
read from their files again."""
BYTES_PER_IMAGE_PAGE = 152
"""Measured: 76 MiB for 2 GiB."""
KEEP_AFTER_S = 1.0
"""A guest that has just arrived somewhere else, perhaps on the same machine, needs the processor more."""
LOWEST_PRIORITY = 19

T = TypeVar("T")


class LocalVm(msgspec.Struct, frozen=True):
    """A VM that runs on this node."""

    vm: str
    tenant: Tenant
    image: str
    machine: VirtualMachine
    memory_bytes: int


class _Survey(NamedTuple):
    """The distinct pages of a running VM at one moment: where each is, and its digest."""

    vm: str
    pid: int | None
    again_at: float
    again_s: float
    offsets: array[int]
    digests: bytes

    def base(self, memory: GuestMemory) -> Base:
        digests = [self.digests[at : at + DIGEST_BYTES] for at in range(0, len(self.digests), DIGEST_BYTES)]
        return ScatteredBase(
            SIBLING, f"{SIBLING}:{self.vm}", memory.read, [(offset, PAGE) for offset in self.offsets], digests,
            sealed=False,
        )  # fmt: skip


class ImageBases:
    """The bases of images that were used last, within a limit of memory. Sessions keep those that they use alive."""

    def __init__(self, bytes_max: int = IMAGE_DIGESTS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bases: OrderedDict[tuple[str, str, Tenant], Base] = OrderedDict()
        self.bytes = 0

    def get(self, key: tuple[str, str, Tenant]) -> Base | None:
        """Return a base that is held, the most recently used from now on."""
        base = self._bases.get(key)
        if base is not None:
            self._bases.move_to_end(key)
        return base

    def put(self, key: tuple[str, str, Tenant], base: Base) -> None:
        """Hold a base and drop the least recently used; one that is larger than the limit is not held."""
        size = _size_of(base)
        if size > self._bytes_max:
            return
        self.bytes += size - (_size_of(self._bases.pop(key)) if key in self._bases else 0)
        self._bases[key] = base
        while self.bytes > self._bytes_max:
            self.bytes -= _size_of(self._bases.popitem(last=False)[1])


def _size_of(base: Base) -> int:
    return len(base.digests) * BYTES_PER_IMAGE_PAGE


class KnownPages:
    """This node's page stores and what else can stand in for sending pages."""

    def __init__(self, settings: AgentSettings) -> None:
        self.store = PageStore(settings.pages_dir, settings.pages_bytes_max)
        self._reuse = settings.reuse
        self._images = ImageBases()
        self._surveys: dict[tuple[Tenant, str], _Survey] = {}
        self._lock = asyncio.Lock()

    async def of_image(self, image: LocalImage, tenant: Tenant) -> list[Base]:
        """Return the pages of an image; their digests are computed once for each project."""
        return [await self._of_file(image, file, tenant) for file in _files(image)]

    async def prepare(self, image: LocalImage, tenant: Tenant) -> None:
        """Have the digests of an image's pages in a file before a migration needs them; others have the processor."""
        for path in _files(image):
            if not self._index(image, path, tenant).exists():
                await _in_background(functools.partial(self._hash_file, image, path, tenant))

    async def of_disk(self, image: LocalImage, tenant: Tenant) -> list[Base]:
        """Return the pages of an image's disk, if it has one."""
        return [] if image.disk is None or image.encryption_key else [await self._of_file(image, image.disk, tenant)]

    async def _of_file(self, image: LocalImage, path: Path, tenant: Tenant) -> Base:
        async with self._lock:
            key = (image.info.digest, path.name, tenant)
            base = self._images.get(key)
            if base is None:
                base = await asyncio.to_thread(self._hash_file, image, path, tenant)
                self._images.put(key, base)
            return base

    def _index(self, image: LocalImage, path: Path, tenant: Tenant) -> Path:
        return self.store.root / tenant.project / "images" / f"{image.info.digest}-{path.name}.index"

    def _hash_file(self, image: LocalImage, path: Path, tenant: Tenant) -> Base:
        hash = PageHash(tenant.key)
        name = f"{IMAGE}:{image.info.digest}-{path.name}"
        file = _OpenFile(path)
        all_places = data_places(path) if path == image.disk else places(path)
        index = self._index(image, path, tenant)
        stored = read_index(index, hash)
        digests = [] if stored is None else stored.digests
        if len(digests) != len(all_places):
            digests = [hash.digest(file.read(*place).ljust(len(ZERO_PAGE), b"\0")) for place in all_places]
            with contextlib.suppress(OSError):  # it is computed again then
                index.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                index.write_bytes(index_of(hash, digests))
        return ScatteredBase(IMAGE, name, file.read, all_places, digests, sealed=True)

    async def for_arrival(
        self, vm: str, image: LocalImage, tenant: Tenant, local_vms: Sequence[LocalVm]
    ) -> tuple[Base, ...]:  # fmt: skip
        """Return what may spare a VM that comes here sending pages, the most likely first."""
        if CHECKPOINT in self._reuse:
            checkpoint = await self._load(CHECKPOINT, vm, tenant)
            if checkpoint is not None:
                return (checkpoint,)  # nothing is closer to its memory now, and other bases would hardly be used
        bases: list[Base] = []
        if IMAGE in self._reuse:
            with contextlib.suppress(OSError):
                bases += await self.of_image(image, tenant)
        if SIBLING in self._reuse:
            candidates = [n for n in local_vms if n.tenant == tenant and n.vm != vm and n.image == image.info.name]
            bases += await self._of_siblings(candidates, self._surveys.get((tenant, image.info.name)), tenant)
        return tuple(bases)

    async def _load(self, kind: str, name: str, tenant: Tenant) -> FileBase | None:
        """Return pages that were kept, with whichever of the project's keys."""
        others = [PageHash(key) for key in tenant.other_keys]
        return await asyncio.to_thread(self.store.load, tenant.project, kind, name, PageHash(tenant.key), others)

    async def _of_siblings(self, candidates: list[LocalVm], survey: _Survey | None, tenant: Tenant) -> list[Base]:
        """Return pages of running VMs of the same image and project, or else of one that was here."""
        hash = PageHash(tenant.key)
        candidates.sort(key=lambda n: not _is_of(survey, n))
        bases: list[Base] = []
        for sibling in candidates[:SIBLINGS_MAX]:
            base = await self._of_local_vm(sibling, hash, survey if _is_of(survey, sibling) else None)
            if base is not None:
                bases.append(base)
        if bases:
            return bases
        for name in self.store.names(tenant.project, CHECKPOINT)[:OTHER_CHECKPOINTS_MAX]:
            checkpoint = await self._load(CHECKPOINT, name, tenant)
            if checkpoint is not None:
                checkpoint.kind = SIBLING
                bases.append(checkpoint)
        return bases

    async def checkpoint_elsewhere(self, vm: str, tenant: Tenant) -> dict[str, list[bytes]]:
        """Return the checkpoint's digests that the previous node of a VM announced, by the name of that base."""
        return await asyncio.to_thread(
            self.store.load_index, tenant.project, CHECKPOINT_INDEX, vm, CHECKPOINT, PageHash(tenant.key)
        )  # fmt: skip

    async def for_disk(
        self, vm: str, image: LocalImage, tenant: Tenant, replica: Sequence[Path] = ()
    ) -> tuple[Base, ...]:
        """Return what may spare the disk of a VM that comes here sending pages. ``replica``: the layers of its replica
        here, from the lowest up."""
        bases: list[Base] = []
        if IMAGE in self._reuse:
            with contextlib.suppress(OSError):
                bases += await self.of_disk(image, tenant)
        if CHECKPOINT in self._reuse:
            if replica and image.disk is not None:  # newer than what the VM left here at its last move
                bases += await self._of_replica(vm, image.disk, tenant, replica)
            elif (layer := await self._load(DISK, vm, tenant)) is not None:
                layer.kind = CHECKPOINT
                bases.append(layer)
        return tuple(bases)

    async def _of_replica(self, vm: str, disk: Path, tenant: Tenant, layers: Sequence[Path]) -> list[Base]:
        hash = PageHash(tenant.key)
        try:
            return [await asyncio.to_thread(replica_pages.base_of, CHECKPOINT, vm, disk, layers, hash)]
        except (Unacceptable, OSError) as error:
            log.warning("a VM's replica can't spare its move anything", vm=vm, error=str(error))
            return []

    async def _of_local_vm(self, sibling: LocalVm, hash: PageHash, survey: _Survey | None) -> Base | None:
        """Return the pages of a running VM, as they were when it was surveyed, or are now; what changes after that is
        noticed when it is read."""
        memory = await _memory(sibling.machine, sibling.memory_bytes)
        if memory is None:
            return None
        try:
            if survey is None:
                survey = await asyncio.to_thread(_survey, sibling, memory, hash)
            return survey.base(memory)
        except OSError as error:
            log.warning("a running VM's pages can't be read", vm=sibling.vm, error=str(error))
            return None

    async def survey(self, local_vms: Sequence[LocalVm]) -> None:
        """Read the memory of one running VM, the next that is due, so that its pages are known when a VM of its image
        and project comes. Others have the processor first."""
        if SIBLING not in self._reuse:
            return
        by_name = {n.vm: n for n in local_vms}
        self._surveys = {
            key: survey for key, survey in self._surveys.items() if _is_of(survey, by_name.get(survey.vm))
        }  # fmt: skip
        for local_vm in local_vms:
            if not self._is_due(local_vm):
                continue
            memory = await _memory(local_vm.machine, local_vm.memory_bytes)
            if memory is None:
                continue
            key = local_vm.tenant, local_vm.image
            last = self._surveys.get(key)
            again_s = SURVEY_AGAIN_S if last is None else min(2 * last.again_s, SURVEY_AGAIN_S_MAX)
            try:
                hash = PageHash(local_vm.tenant.key)
                self._surveys[key] = await _in_background(
                    functools.partial(_survey, local_vm, memory, hash, again_s)
                )  # fmt: skip
                return
            except OSError as error:  # the next one may be readable
                log.warning("a running VM's pages can't be read", vm=local_vm.vm, error=str(error))

    def _is_due(self, local_vm: LocalVm) -> bool:
        """Say whether a VM of its image and project has to be surveyed, and may be."""
        last = self._surveys.get((local_vm.tenant, local_vm.image))
        if last is None:
            return len(self._surveys) < SURVEYS_MAX
        return time.monotonic() >= last.again_at

    async def keep(self, vm: str, machine: VirtualMachine, memory_bytes: int, tenant: Tenant) -> None:
        """Keep what a VM that has left had in memory here: it may come back. Its QEMU must still be there, paused. Of a
        VM with encrypted disks nothing is kept."""
        await asyncio.to_thread(self.store.drop, tenant.project, CHECKPOINT_INDEX, vm)
        if CHECKPOINT not in self._reuse or tenant.encrypted:
            return
        memory = await _memory(machine, memory_bytes)
        layer = machine.directory / DISK_LAYER
        hash = PageHash(tenant.key)
        kinds: dict[str, Iterable[bytes]] = {}
        if memory is not None:
            kinds[CHECKPOINT] = (page for _, page in memory.pages())
        if layer.exists():
            kinds[DISK] = pages_of(layer)
        if not kinds:
            return
        try:
            await asyncio.sleep(KEEP_AFTER_S)
            for kind, pages in kinds.items():
                count = await _in_background(functools.partial(self.store.save, tenant.project, kind, vm, hash, pages))
                log.info("kept a checkpoint", vm=vm, what=kind, pages=count)
        except OSError as error:
            log.warning("a checkpoint was not kept", vm=vm, error=str(error))

    async def forget(self, vm: str, tenant: Tenant, *, deleted: bool = False) -> None:
        """The VM is here again, or deleted: what it left behind before is of no more use."""
        for kind in (CHECKPOINT, DISK, CHECKPOINT_INDEX) if deleted else (CHECKPOINT, DISK):
            await _in_background(functools.partial(self.store.drop, tenant.project, kind, vm))


def _survey(
    local_vm: LocalVm, memory: GuestMemory, hash: PageHash, again_s: float = SURVEY_AGAIN_S
) -> _Survey:  # fmt: skip
    """Return which pages a running VM has. Raises OSError when its QEMU is gone."""
    pid = local_vm.machine.pid
    offsets: dict[bytes, int] = {}
    for offset, page in memory.pages():
        if page != ZERO_PAGE:
            offsets.setdefault(hash.digest(page), offset)
        if len(offsets) >= SIBLING_PAGES_MAX:
            break
    again_at = time.monotonic() + again_s
    return _Survey(local_vm.vm, pid, again_at, again_s, array("Q", offsets.values()), b"".join(offsets))


def _is_of(survey: _Survey | None, local_vm: LocalVm | None) -> bool:
    return (
        survey is not None and local_vm is not None and (survey.vm, survey.pid) == (local_vm.vm, local_vm.machine.pid)
    )


def _files(image: LocalImage) -> list[Path]:
    disk = None if image.encryption_key else image.disk  # what lies there is no page of any guest
    return [path for path in (image.initrd, disk) if path is not None]


async def _in_background(work: Callable[[], T]) -> T:
    """Do work in a thread that leaves the processor to all others: guests, and migrations on their way."""

    def low() -> T:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        return work()

    thread = ThreadPoolExecutor(1, "background")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, low)
    finally:
        thread.shutdown(wait=False)


async def _memory(machine: VirtualMachine, size: int) -> GuestMemory | None:
    if machine.monitor is None or machine.pid is None:
        return None
    try:
        return await GuestMemory.of(machine.monitor, machine.pid, size)
    except (MonitorFailed, OSError) as error:
        log.warning("a VM's memory can't be read", vm=machine.id, error=str(error))
        return None


class _OpenFile:
    """A file that is read at any place, for as long as somebody holds this."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._descriptor)
