"""Images that come to this node from outside: uploaded, fetched or found here; checked, converted, and kept.

What is under way lives in a directory of its own among the images, so an agent that is started again goes on with it;
an image is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import msgspec

from novacron.agent.actions import Action, doing
from novacron.agent.images import encrypted
from novacron.agent.images.download import Fetch, open_beneath
from novacron.agent.images.named_work import NamedWork
from novacron.agent.images.writer import PIECE_BYTES, Hash, Writer
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.directory import UIDS_MAX
from novacron.disk import convert, extent_maps, formats, luks, partition_table, unpack
from novacron.disk.blocks import data_ranges
from novacron.disk.errors import Unacceptable
from novacron.disk.files import make_durable
from novacron.disk.images import DISK_ALIGNMENT, MANIFEST, ImageFile, Manifest
from novacron.model import limits
from novacron.model.image import ImageFormat, ImportPhase, Source
from novacron.model.vm import BOOT_FILE, ISO
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu.confine import Account, confined
from novacron.supervise import guard
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

SCRATCH = ".importing-"
SOURCE, UNPACKED, DISK, ENCRYPTED = "source", "unpacked", "disk.raw", "disk.luks"
KINDS = {ImageFormat.ISO: ISO, ImageFormat.BOOT_FILE: BOOT_FILE}
"""Of images that are no VM's disk."""
SPARE_BYTES = 1 << 30
"""Room that stays free on the disk with the images."""
REPORT_S = 1.0
TOLD_S_MAX = 5.0


class ImageImports:
    """All imports of this node. ``arrived`` is called when there is a new image."""

    def __init__(
        self, settings: AgentSettings, send: Callable[[wire.Message], None], arrived: Callable[[], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._send = send
        self._arrived = arrived
        self._imports = NamedWork("import", self._work, self._remove_others)
        self._changed = asyncio.Event()
        self._more: dict[str, asyncio.Event] = {}
        self._writing = asyncio.Lock()
        self._reported_at = 0.0

    def tell(
        self, desired: tuple[wire.ImportWanted, ...], tasks: asyncio.TaskGroup, unreadable: Collection[str] = ()
    ) -> None:
        """Work on these imports, and go on with those that are unreadable; remove the files of others."""
        ids = (*(import_.id for import_ in desired), *(id for id in unreadable if id in self._more))
        self._more = {id: self._more.get(id) or asyncio.Event() for id in ids}
        self._imports.tell({import_.id: import_ for import_ in desired}, tasks, unreadable)
        self._changed.set()
        for more in self._more.values():
            more.set()

    def _remove_others(self, is_kept: Callable[[str], bool]) -> None:
        for scratch in self._settings.images_dir.glob(f"{SCRATCH}{self._settings.name}.*"):
            if not is_kept(scratch.name.rpartition(".")[2]):
                shutil.rmtree(scratch, ignore_errors=True)

    async def take(self, id: str, offset: int, data: bytes) -> int:
        """Take a piece of an upload and return how much of it is here. Raises Unacceptable, OSError."""
        with contextlib.suppress(TimeoutError):  # its first piece may come before the word of it
            async with asyncio.timeout(TOLD_S_MAX):
                while self._imports.get(id) is None:
                    self._changed.clear()
                    await self._changed.wait()
        import_ = self._imports.get(id)
        if import_ is None or import_.spec.source is not Source.UPLOAD:
            raise Unacceptable("this node does not expect that upload")
        path = self._scratch(import_) / SOURCE
        async with self._writing:
            held = await asyncio.to_thread(_append, path, offset, data, import_.spec.size_bytes)
        if self._imports.get(id) is None:  # given up meanwhile: nothing else may still clear it
            await asyncio.to_thread(shutil.rmtree, path.parent, True)
            raise Unacceptable("this node does not expect that upload")
        self._report(import_, ImportPhase.RECEIVING, held, soon=held < import_.spec.size_bytes)
        self._more[id].set()
        return held

    def _scratch(self, import_: wire.ImportWanted) -> Path:
        return self._settings.images_dir / f"{SCRATCH}{self._settings.name}.{import_.id}"

    def _fail(self, import_: wire.ImportWanted, why: str, code: WaitCode) -> None:
        self._send(wire.ImportStands(import_.id, ImportPhase.FAILED, 0, why, code))

    def _report(
        self, import_: wire.ImportWanted, phase: ImportPhase, held: int, *, soon: bool = False, disk_bytes: int = 0
    ) -> None:
        if soon and time.monotonic() - self._reported_at < REPORT_S:
            return
        self._reported_at = time.monotonic()
        self._send(wire.ImportStands(import_.id, phase, held, disk_bytes=disk_bytes))

    async def _work(self, import_: wire.ImportWanted) -> None:
        scratch = self._scratch(import_)
        log.info("an import begins", image=import_.spec.name, source=import_.spec.source)
        try:
            with doing(Action.IMPORT, trace=import_.trace, image=import_.spec.name):
                held = await self._import(import_, scratch)
        except (Unacceptable, OSError, TimeoutError) as error:
            why = str(error.__cause__) if error.__cause__ is not None else None
            log.warning("an image could not be imported", image=import_.spec.name, error=str(error), cause=why)
            await asyncio.to_thread(shutil.rmtree, scratch, True)
            self._fail(import_, str(error) or type(error).__name__, code_of(error))
        except Exception as error:  # a defect met with import_ file must not take the agent away
            log.exception("defect in an import", image=import_.spec.name)
            await asyncio.to_thread(shutil.rmtree, scratch, True)
            self._fail(
                import_, f"internal error in its agent: {type(error).__name__}; see its log", WaitCode.STEP_FAILED
            )
        else:
            log.info("an image was imported", image=import_.spec.name)
            await guard("images", self._arrived)  # they are looked at again soon
            self._report(import_, ImportPhase.DONE, held)

    async def _import(self, import_: wire.ImportWanted, scratch: Path) -> int:
        """Bring the image here and return how many bytes its file had. Raises Unacceptable, OSError, TimeoutError."""
        target = self._settings.images_dir / import_.spec.name
        if await asyncio.to_thread(_is_done, import_, target):  # when an earlier agent was killed
            return import_.spec.size_bytes
        source = scratch / SOURCE
        if await asyncio.to_thread(_begin, scratch):  # an earlier agent was killed just before it was done
            return await self._finish(scratch, target, import_.spec.size_bytes)
        read = await self._receive(import_, source)
        held = await asyncio.to_thread(_held_bytes, source)
        self._report(import_, ImportPhase.CONVERTING, held)
        if import_.spec.sha256 is not None:
            if read is None:
                read = await asyncio.to_thread(_sha256, source)
            if read.hexdigest() != import_.spec.sha256:
                raise Unacceptable(f"its SHA-256 is {read.hexdigest()}, not the expected one", WaitCode.DIGEST_WRONG)
        await asyncio.to_thread(scratch.chmod, 0o711)
        described = await self._convert(import_, source, scratch / DISK, read)
        if import_.encryption_key:
            held_bytes = luks.file_bytes(described.size_bytes, import_.encryption_key)  # it has no holes
            await asyncio.to_thread(_check_room, scratch, held_bytes)
            described = await encrypted.make(import_, scratch / DISK, scratch / ENCRYPTED)
        kind = "disk" if import_.spec.format is None else KINDS.get(import_.spec.format, "disk")
        manifest = Manifest(
            kind,
            description=import_.spec.description,
            disk=described,
            origin=import_.id,
            encryption_key=import_.encryption_key,
        )
        await asyncio.to_thread(_describe, scratch, manifest)
        return await self._finish(scratch, target, held)

    async def _finish(self, scratch: Path, target: Path, held: int) -> int:
        """Let an image be seen of which everything is there."""
        await asyncio.to_thread(_put_in_place, scratch, target)
        return held

    async def _receive(self, import_: wire.ImportWanted, source: Path) -> Hash | None:
        """Have the whole file at ``source`` and return its SHA-256, if that is known by then."""
        if import_.spec.source is Source.UPLOAD:
            more = self._more[import_.id]
            more.clear()
            while await asyncio.to_thread(_held_bytes, source) < import_.spec.size_bytes:
                await more.wait()
                more.clear()
            await asyncio.to_thread(_cut, source, import_.spec.size_bytes)  # an earlier agent had filled its last page
            return None
        await asyncio.to_thread(source.unlink, missing_ok=True)
        over = threading.Event()
        writer = Writer(source)
        copying = asyncio.create_task(asyncio.to_thread(self._copy, import_, writer, over))
        try:
            while not copying.done():
                await asyncio.wait({copying}, timeout=REPORT_S)
                self._report(import_, ImportPhase.RECEIVING, writer.held_bytes, soon=True)
            copying.result()
            return await asyncio.to_thread(writer.close)
        finally:
            over.set()
            await asyncio.gather(copying, return_exceptions=True)
            await asyncio.to_thread(writer.abandon)

    def _copy(self, import_: wire.ImportWanted, writer: Writer, over: threading.Event) -> None:
        """Copy the source file, fetched or local, to its end."""
        with contextlib.ExitStack() as stack:
            if import_.spec.source is Source.URL:
                read: Callable[[int], bytes] = stack.enter_context(
                    Fetch(import_.spec.location, self._settings.imports_from, local=self._settings.imports_local)
                ).read
            else:
                file = stack.enter_context(open_beneath(self._settings.imports_dir, import_.spec.location))
                read = file.read
            looked_at = 0
            while piece := read(PIECE_BYTES):
                if over.is_set():
                    raise Unacceptable("it was aborted", WaitCode.ABORTED)
                if writer.held_bytes + len(piece) > limits.IMAGE_FILE_BYTES_MAX:
                    raise Unacceptable(f"it has more than {limits.IMAGE_FILE_BYTES_MAX} bytes")
                if import_.spec.size_bytes and writer.held_bytes + len(piece) > import_.spec.size_bytes:
                    raise Unacceptable(f"it has more than the {import_.spec.size_bytes} bytes in the catalogue")
                if writer.held_bytes >= looked_at:
                    _check_room(self._settings.images_dir, PIECE_BYTES)
                    looked_at = writer.held_bytes + 16 * PIECE_BYTES
                writer.write(piece)
        if not writer.held_bytes:
            raise Unacceptable("the file is empty")
        if writer.held_bytes < import_.spec.size_bytes:
            raise Unacceptable(f"it has {writer.held_bytes} bytes, not the {import_.spec.size_bytes} in the catalogue")

    async def _convert(self, import_: wire.ImportWanted, source: Path, target: Path, read: Hash | None) -> ImageFile:
        """Make the raw disk of the image and return how the manifest describes it. ``read`` is of the file as it is."""
        held = await asyncio.to_thread(_held_bytes, source)
        as_it_is = import_.spec.format is ImageFormat.BOOT_FILE  # the guest's own boot loader unpacks it
        packed = None if as_it_is else await asyncio.to_thread(_compression, source)
        if packed is not None:
            source, read = await self._unpack(source, packed)
        format, size = await asyncio.to_thread(_examine, source, import_.spec.format)
        if size is not None and not 0 < size <= limits.IMAGE_FILE_BYTES_MAX:
            raise Unacceptable(f"its disk has {size} bytes; 1 to {limits.IMAGE_FILE_BYTES_MAX} are allowed")
        disk_bytes = await asyncio.to_thread(_held_bytes, source) if size is None else size
        await self._until_granted(import_, held, disk_bytes)
        await asyncio.to_thread(target.unlink, missing_ok=True)
        if format.kept_as_is:
            await asyncio.to_thread(
                os.link, source, target
            )  # both names: after a kill here the received file is still found
        else:
            uid = None if self._settings.uid_base is None else self._settings.uid_base + UIDS_MAX - 1
            await convert.convert(
                source, format, target, size, SPARE_BYTES,
                convert.ToolUser(lambda command: command if uid is None else confined(command, Account(uid)), uid),
            )  # fmt: skip
            read = None
        length, more = await asyncio.to_thread(_align, target)
        if read is not None:
            read.update(bytes(more))
        if read is None:
            read = await asyncio.to_thread(_sha256, target)
        return ImageFile(DISK, read.hexdigest(), length)

    async def _until_granted(self, import_: wire.ImportWanted, held: int, disk_bytes: int) -> None:
        """Wait until the server lets the image have a disk of this size, or gives the import up."""
        while (self._imports.get(import_.id) or import_).disk_bytes < disk_bytes:
            more = self._more[import_.id]
            more.clear()
            self._report(import_, ImportPhase.CONVERTING, held, disk_bytes=disk_bytes)
            with contextlib.suppress(TimeoutError):  # the report may have been lost with its connection
                async with asyncio.timeout(TOLD_S_MAX):
                    await more.wait()

    async def _unpack(self, source: Path, kind: unpack.Compression) -> tuple[Path, Hash]:
        """Unpack a compressed file beside it; return where, and its SHA-256. Raises Unacceptable, OSError."""
        unpacked, aborted = source.with_name(UNPACKED), threading.Event()
        await asyncio.to_thread(unpacked.unlink, missing_ok=True)
        writer = Writer(unpacked)
        looked_at = 0

        def write(piece: bytes) -> None:
            nonlocal looked_at
            if aborted.is_set():
                raise Unacceptable("it was aborted", WaitCode.ABORTED)
            if writer.held_bytes >= looked_at:
                _check_room(self._settings.images_dir, PIECE_BYTES)
                looked_at = writer.held_bytes + 16 * PIECE_BYTES
            writer.write(piece)

        def work() -> Hash:
            with source.open("rb") as file:
                unpack.unpack(file, kind, write, limits.IMAGE_FILE_BYTES_MAX)
            with unpacked.open("rb") as file:
                if unpack.detect(file) is not None:
                    raise Unacceptable("it is compressed twice: unpack it first")
            return writer.close()

        working = asyncio.create_task(asyncio.to_thread(work))
        try:
            return unpacked, await asyncio.shield(working)
        finally:
            aborted.set()
            await asyncio.gather(working, return_exceptions=True)
            await asyncio.to_thread(writer.abandon)


def _held_bytes(path: Path) -> int:
    """Return how long a file is; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _cut(path: Path, size_bytes: int) -> None:
    """Cut off what a file has beyond ``size_bytes``."""
    if path.stat().st_size > size_bytes:
        os.truncate(path, size_bytes)


def _compression(path: Path) -> unpack.Compression | None:
    with path.open("rb") as file:
        return unpack.detect(file)


def _align(disk: Path) -> tuple[int, int]:
    """Fill a disk's last sector with zeros, and take the disk from the tool's user: return its length, and how many
    zeros there are more."""
    length = disk.stat().st_size
    more = -length % DISK_ALIGNMENT
    if more:
        os.truncate(disk, length + more)
    if os.geteuid() == 0:
        os.chown(disk, 0, 0)
    return length + more, more


def _examine(source: Path, said: ImageFormat | None) -> tuple[ImageFormat, int | None]:
    """Return in which format a disk is, and how many bytes it has as far as its header says. Raises Unacceptable."""
    with source.open("rb") as file:
        format = said or formats.detect(file)
        size = formats.check(file, format)
        extent_maps.check_whole(file, format)
        if said is None and format is ImageFormat.RAW:
            partition_table.check_whole(file)
    return format, size


def _is_done(import_: wire.ImportWanted, target: Path) -> bool:
    """Say whether an image is here by this import. Raises Unacceptable for any other one."""
    if not target.exists():
        return False
    if msgspec.json.decode((target / MANIFEST).read_bytes(), type=Manifest).origin == import_.id:
        return True
    raise Unacceptable(f"image {import_.spec.name} already exists")


def _begin(scratch: Path) -> bool:
    """Have a place for an import; say whether all of it is there already. Raises OSError."""
    if (scratch / MANIFEST).exists():
        return True
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    return False


def _describe(scratch: Path, manifest: Manifest) -> None:
    """Put a manifest beside a disk, whole or not at all. Raises OSError."""
    if manifest.kind == BOOT_FILE and not manifest.encryption_key:
        (scratch / DISK).chmod(0o644)  # QEMU opens it again, as another user; only we can enter its directory
    new = scratch / f"{MANIFEST}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    new.rename(scratch / MANIFEST)


def _put_in_place(scratch: Path, target: Path) -> None:
    """Let an image be seen, durably. Raises OSError."""
    for name in (SOURCE, UNPACKED, *((DISK,) if (scratch / ENCRYPTED).exists() else ())):
        (scratch / name).unlink(missing_ok=True)
    scratch.chmod(0o700)
    scratch.rename(target)
    make_durable(target)


def _append(path: Path, offset: int, data: bytes, size_bytes: int) -> int:
    """Add a piece to a file that grows in order; one that is there already is no error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = _held_bytes(path)
    if offset != held:
        return held
    if held + len(data) > size_bytes:
        raise Unacceptable(f"it has more than the {size_bytes} announced bytes")
    _check_room(path.parent, len(data))
    writer = Writer(path, digest=False)
    writer.held_bytes = held
    try:
        for at in range(0, len(data), PIECE_BYTES):
            writer.write(data[at : at + PIECE_BYTES])
        writer.close()
    finally:
        writer.abandon()
    return held + len(data)


def _check_room(directory: Path, more_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free - more_bytes < SPARE_BYTES:
        raise Unacceptable(f"there is no space for it in {directory.name}: {free} bytes are free", WaitCode.NO_SPACE)


def _sha256(path: Path) -> Hash:
    """Return the SHA-256 of a file, without reading its holes."""
    digest, at = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start, end in [*data_ranges(file.fileno(), size), (size, size)]:
            while at < start:
                count = min(start - at, PIECE_BYTES)
                digest.update(memoryview(ZEROS_PIECE)[:count])
                at += count
            while at < end:
                piece = os.pread(file.fileno(), min(PIECE_BYTES, end - at), at)
                if not piece:
                    raise OSError(f"{path} was truncated while it was read")
                digest.update(piece)
                at += len(piece)
    return digest


ZEROS_PIECE = bytes(PIECE_BYTES)
