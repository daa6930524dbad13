"""Snapshots and the directories in them, as restic stores them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

import msgspec

from novacron.backup.errors import Damaged
from novacron.backup.pack import ID_BYTES

FILE_MODE, DIRECTORY_MODE = 0o600, 1 << 31 | 0o700
"""Of Go's ``os.FileMode``."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
"""A file's name in our snapshots: it becomes a file's name again when somebody restores."""


class TreeNode(msgspec.Struct, omit_defaults=True):
    """A file or directory."""

    name: str
    type: str
    mode: int
    mtime: str
    atime: str
    ctime: str
    uid: int
    gid: int
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    links: int = 0
    content: list[str] | None = None
    """Ids of a file's blobs, in order."""
    subtree: str | None = None


class Tree(msgspec.Struct):
    """A directory: its entries, by name."""

    nodes: list[TreeNode]

    def encode(self) -> bytes:
        return msgspec.json.encode(Tree(sorted(self.nodes, key=lambda node: node.name))) + b"\n"


class BackupSnapshot(msgspec.Struct, omit_defaults=True):
    """What was backed up, when and by whom."""

    time: str
    tree: str
    paths: list[str]
    hostname: str
    username: str
    parent: str | None = None
    tags: list[str] | None = None
    program_version: str = ""


class File(msgspec.Struct):
    """A file of a snapshot: its size, and the ids of its blobs, one after the other."""

    size: int
    content: bytes

    def ids(self) -> list[bytes]:
        return [self.content[at : at + ID_BYTES] for at in range(0, len(self.content), ID_BYTES)]


FOLDERS_DEEP_MAX = 16
"""Folders in folders."""


def check_path(path: str) -> tuple[str, ...]:
    """Return the parts of a file's path in a backup. Raises ValueError for one that could lead anywhere else."""
    parts = tuple(path.split("/"))
    if len(parts) > FOLDERS_DEEP_MAX or not all(map(NAME.match, parts)):
        raise ValueError(f"{path!r} is not a file path in a backup")
    return parts


def file_node(name: str, file: File, at: datetime) -> TreeNode:
    """Return the entry of a file."""
    when = at.isoformat()
    return TreeNode(name, "file", FILE_MODE, when, when, when, 0, 0, file.size, 1, [id.hex() for id in file.ids()])


def folder_node(name: str, subtree: bytes, at: datetime) -> TreeNode:
    """Return the entry of a folder."""
    when = at.isoformat()
    return TreeNode(name, "dir", DIRECTORY_MODE, when, when, when, 0, 0, subtree=subtree.hex())


def file_of(node: TreeNode) -> File:
    """Return the file of an entry. Raises ValueError."""
    content = bytes.fromhex("".join(node.content or ()))
    if len(content) % ID_BYTES:
        raise ValueError(f"{node.name}: its list of blobs is cut short")
    return File(node.size, content)


def decode_tree(content: bytes, id: str) -> Tree:
    """Return a directory. Raises Damaged."""
    try:
        return msgspec.json.decode(content, type=Tree)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Damaged(f"directory {id} is damaged: {error}") from None


def decode_snapshot(content: bytes, name: str) -> BackupSnapshot:
    """Return a snapshot. Raises Damaged."""
    try:
        return msgspec.json.decode(content, type=BackupSnapshot)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Damaged(f"snapshot {name} is damaged: {error}") from None
