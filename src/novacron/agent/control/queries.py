"""The server's questions to this node, and what answers each of them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar, cast

import msgspec

from novacron.agent.backup_files import BackupFiles
from novacron.agent.backups import VmBackups
from novacron.agent.images import unused
from novacron.agent.images.exports import VmExports
from novacron.agent.images.imports import ImageImports
from novacron.agent.migration.services import NodeServices
from novacron.agent.observe.metrics import AgentMetrics
from novacron.agent.replication.receiver import ReplicaReceivers
from novacron.agent.replication.sender import ReplicaSenders
from novacron.agent.repositories.prune import RepositoryPrunes
from novacron.agent.vm import guest_commands
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.guest_commands import GuestCommands
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.worker import Worker
from novacron.disk.errors import Unacceptable
from novacron.model.backup_files import BackupFileSystem, BackupListing
from novacron.model.errors import MALFORMED, InvalidInput
from novacron.model.firmware_state import FirmwareState
from novacron.model.guest_command import FilePiece, GuestCommand
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.telemetry.values import counter
from novacron.wire import codec, questions
from novacron.wire import messages as wire
from novacron.wire.questions import Question

log = logs.get(__name__)

A = TypeVar("A")
Q = TypeVar("Q", bound=Question[object])


class Subjects(msgspec.Struct, frozen=True):
    """What questions are about. ``rescan_images`` looks at the node's images again."""

    imports: ImageImports
    exports: VmExports
    backups: VmBackups
    backup_files: BackupFiles
    prunes: RepositoryPrunes
    sent_replicas: ReplicaSenders
    kept_replicas: ReplicaReceivers
    host: NodeServices
    workers: Mapping[str, Worker]
    rescan_images: Callable[[], Awaitable[None]]
    metrics: AgentMetrics
    commands: GuestCommands = msgspec.field(default_factory=GuestCommands)

    def context(self, vm: str) -> VmContext:
        """Return a VM that is here. Raises InvalidInput."""
        worker = self.workers.get(vm)
        if worker is None:
            raise InvalidInput(f"VM {vm} is not on this node", field="vm")
        return worker.context

    def machine(self, vm: str) -> VirtualMachine:
        """Return the machine of a VM that is here. Raises InvalidInput."""
        return self.context(vm).machine


Handler = Callable[[Q, Subjects], Awaitable[object]]

HANDLERS: dict[type[Question[object]], Handler[Question[object]]] = {}
"""What answers each question: handlers enter themselves with ``answers``."""


def answers(
    question: type[Question[A]],
) -> Callable[[Callable[[Q, Subjects], Awaitable[A]]], Callable[[Q, Subjects], Awaitable[A]]]:
    """Let a function answer a question; its result is of the type that the question declares."""

    def enter(handler: Callable[[Q, Subjects], Awaitable[A]]) -> Callable[[Q, Subjects], Awaitable[A]]:
        HANDLERS[cast("type[Question[object]]", question)] = cast("Handler[Question[object]]", handler)
        return handler

    return enter


async def answer(message: wire.Ask, about: Subjects) -> wire.Answered:
    """Return the answer to a question; errors become answers too."""
    kind, outcome = "unknown", "refused"
    try:
        question = questions.decode(message.question)
        kind = type(question).__name__
        value = await HANDLERS[type(question)](question, about)
        outcome = "answered"
    except MALFORMED as error:
        return wire.Answered(message.ask, error=f"its agent does not support this request: {error}")
    except InvalidInput as error:
        return wire.Answered(message.ask, error=error.detail, field=error.field)
    except (Unacceptable, MonitorFailed, OSError, TimeoutError) as error:
        outcome = "failed"
        return wire.Answered(message.ask, error=str(error) or type(error).__name__)
    except Exception as error:  # a defect: the caller must not wait in vain
        outcome = "failed"
        log.exception("defect in an answer", question=kind)
        return wire.Answered(message.ask, error=f"internal error in its agent: {type(error).__name__}; see its log")
    finally:
        counter("novacron_agent_questions_total").add(kind, outcome)
    return wire.Answered(message.ask, msgspec.Raw(codec.encoder.encode(value)))


@answers(questions.ReadMetrics)
async def _read_metrics(question: questions.ReadMetrics, about: Subjects) -> bytes:
    return await about.metrics.render(open_metrics=question.open_metrics)


@answers(questions.SetLogLevel)
async def _set_log_level(question: questions.SetLogLevel, _about: Subjects) -> None:
    try:
        logs.set_level(question.level)
    except ValueError as error:
        raise InvalidInput(str(error), field="level") from error
    log.warning("the log level has changed", level=question.level)


@answers(questions.TakePiece)
async def _take_piece(question: questions.TakePiece, about: Subjects) -> int:
    return await about.imports.take(question.id, question.offset, question.data)


@answers(questions.ReadExport)
async def _read_export(question: questions.ReadExport, about: Subjects) -> bytes:
    return await asyncio.to_thread(about.exports.read, question.id, question.offset, question.bytes_max)


@answers(questions.ReadFirmwareState)
async def _read_firmware_state(question: questions.ReadFirmwareState, about: Subjects) -> FirmwareState:
    return await asyncio.to_thread(about.exports.read_firmware_state, question.id)


@answers(questions.PruneRepository)
async def _prune_repository(question: questions.PruneRepository, about: Subjects) -> questions.PruneState:
    return about.prunes.answer(question)


@answers(questions.ListBackupFileSystems)
async def _list_backup_file_systems(
    question: questions.ListBackupFileSystems, about: Subjects
) -> tuple[BackupFileSystem, ...]:  # fmt: skip
    return await about.backup_files.systems(question)


@answers(questions.ListBackupFiles)
async def _list_backup_files(question: questions.ListBackupFiles, about: Subjects) -> BackupListing:
    return await about.backup_files.listing(question)


@answers(questions.ReadBackupFile)
async def _read_backup_file(question: questions.ReadBackupFile, about: Subjects) -> FilePiece:
    return await about.backup_files.read(question)


@answers(questions.ReadConsoleLog)
async def _read_console_log(question: questions.ReadConsoleLog, about: Subjects) -> bytes:
    return await asyncio.to_thread(about.context(question.vm).read_console_log, question.bytes_max)


@answers(questions.TakeScreenshot)
async def _take_screenshot(question: questions.TakeScreenshot, about: Subjects) -> bytes:
    return await about.machine(question.vm).screenshot()


@answers(questions.StartGuestCommand)
async def _start_guest_command(question: questions.StartGuestCommand, about: Subjects) -> int:
    return await about.commands.start(about.machine(question.vm), question.key, question.command)


@answers(questions.ReadGuestCommand)
async def _read_guest_command(question: questions.ReadGuestCommand, about: Subjects) -> GuestCommand:
    return await about.commands.wait(about.machine(question.vm), question.pid, question.wait_s)


@answers(questions.ReadGuestFile)
async def _read_guest_file(question: questions.ReadGuestFile, about: Subjects) -> FilePiece:
    machine = about.machine(question.vm)
    return await guest_commands.read_file(machine, question.path, question.offset, question.bytes_max)


@answers(questions.WriteGuestFile)
async def _write_guest_file(question: questions.WriteGuestFile, about: Subjects) -> int:
    return await guest_commands.write_file(about.machine(question.vm), question.path, question.offset, question.data)


@answers(questions.RemoveImage)
async def _remove_image(question: questions.RemoveImage, about: Subjects) -> None:
    image = about.host.images.get(question.name)
    if image is not None and image.info.digest == question.digest:
        await asyncio.to_thread(_remove, about.host, question.name)
        await about.rescan_images()


def _remove(host: NodeServices, name: str) -> None:
    """Remove an image, whole or not at all: it is out of sight before its files go."""
    root = host.settings.images_dir
    unused.forget(host.settings, name)
    removed = root / f".removed-{host.settings.name}-{name}"
    shutil.rmtree(removed, ignore_errors=True)
    place = root / name
    if place.is_symlink():
        place.unlink()
        return
    place.rename(removed)
    shutil.rmtree(removed)
