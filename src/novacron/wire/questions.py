"""What a server asks a node, and gets one answer to."""

from __future__ import annotations

import msgspec


class TakePiece(msgspec.Struct, frozen=True, tag=True):
    """Bytes of an upload, which begin at ``offset``. The answer is how many of it the node holds."""

    id: str
    offset: int
    data: bytes


class RemoveImage(msgspec.Struct, frozen=True, tag=True):
    """Remove an image; no VM is made of it any more. The answer is empty."""

    name: str
    digest: str


class ReadConsoleLog(msgspec.Struct, frozen=True, tag=True):
    """The end of what a VM printed on its serial line. The answer is bytes."""

    vm: str
    bytes_max: int


class TakeScreenshot(msgspec.Struct, frozen=True, tag=True):
    """What a VM's display shows. The answer is a PNG file."""

    vm: str


class ReadExport(msgspec.Struct, frozen=True, tag=True):
    """A piece of an export. The answer is bytes."""

    id: str
    offset: int
    bytes_max: int


class ReadFirmwareState(msgspec.Struct, frozen=True, tag=True):
    """What firmware and TPM of an exported VM remembered. The answer is a FirmwareState."""

    id: str


class ReadMetrics(msgspec.Struct, frozen=True, tag=True):
    """What the agent, its host and its VMs have counted and use, in a format of Prometheus'. The answer is bytes."""

    open_metrics: bool


class SetLogLevel(msgspec.Struct, frozen=True, tag=True):
    """Log more, or less, until the agent ends. The answer is empty."""

    level: str


Question = (
    ReadMetrics
    | SetLogLevel
    | ReadExport
    | ReadFirmwareState
    | TakePiece
    | RemoveImage
    | ReadConsoleLog
    | TakeScreenshot
)
