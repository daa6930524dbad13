"""A repository: what is in it is found by its content, and nothing that is in it is written again."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
import zstandard

from novacron.backup import index, key_file, snapshot
from novacron.backup.crypto import Key
from novacron.backup.errors import Damaged, NotStored, RepositoryError, WrongKey
from novacron.backup.index import RepositoryIndex
from novacron.backup.pack import (
    TARGET_BYTES,
    Blob,
    BlobType,
    PackWriter,
    check_length,
    content_of,
    sealed_blob,
)
from novacron.backup.snapshot import BackupSnapshot, File
from novacron.backup.storage import Kind, Storage

VERSION: Final = 2
CONFIG_NAME = "config"
POLYNOMIAL = "3da3358b4dc173"
"""restic's tools cut files with it where they write into the repository themselves; any irreducible one will do."""
KEY_PURPOSE, ID_PURPOSE = "novacron backup repository: key", b"novacron backup repository: id"
"""What is derived from the secret of a repository that several may begin at once."""
LEVEL = 3
_COMPRESSED = b"\x02"
"""Begins a file that is no pack, once it is compressed."""
UNPACKED_BYTES_MAX = 256 << 20
ENTRIES_MAX = 1 << 20
"""Of one snapshot that is made here: folders may name one another, so that a few stand for any number."""


class _Config(msgspec.Struct):
    version: int
    id: str
    chunker_polynomial: str


class SnapshotContent(NamedTuple):
    """What a snapshot holds, by paths below its directory."""

    files: dict[str, File]
    folders: list[str]


class _Folder(NamedTuple):
    files: dict[str, File]
    folders: dict[str, _Folder]

    def inner(self, parts: Sequence[str]) -> _Folder:
        """Return a folder in this one, which is made if it is not there."""
        folder = self
        for part in parts:
            folder = folder.folders.setdefault(part, _Folder({}, {}))
        return folder


class Repository:
    """An open repository, for one work at a time, whose threads may all use it.

    What is written counts once ``flush`` or ``save_snapshot`` is over; if anything fails before, all of it may have.
    """

    def __init__(self, storage: Storage, key: Key, id: str) -> None:
        self.storage, self.key, self.id = storage, key, id
        self.index = RepositoryIndex()
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._packs = {type: PackWriter(type) for type in BlobType}
        self._pending: set[bytes] = set()
        """Blobs that a thread is about to add, or that wait in a pack."""
        self._unindexed: list[tuple[bytes, list[Blob]]] = []

    @classmethod
    def create(cls, storage: Storage, password: bytes, cost: key_file.ScryptCost = key_file.COST) -> Repository:
        """Make a new repository. Raises RepositoryError, also where there is one."""
        try:
            storage.read(Kind.CONFIG, CONFIG_NAME)
        except NotStored:
            pass
        else:
            raise RepositoryError("the repository already exists")
        key = Key.random()
        name, content = key_file.make(key, password, cost)
        storage.write(Kind.KEY, name, content)
        config = key.seal(msgspec.json.encode(_Config(VERSION, secrets.token_hex(32), POLYNOMIAL)))
        storage.write(Kind.CONFIG, CONFIG_NAME, config)
        if storage.read(Kind.CONFIG, CONFIG_NAME) != config:
            storage.remove(Kind.KEY, name)
            raise RepositoryError("another process created the repository at the same time: open it")
        return cls.open(storage, password)

    @staticmethod
    def begin(storage: Storage, secret: bytes, cost: key_file.ScryptCost) -> None:
        """Make a repository that others, who have the same random secret as its password, may be making as well.

        Its key and its id follow from the secret, so it is all the same whose files are stored, and in which order;
        whoever is ended in between leaves nothing that is in the way. Raises RepositoryError.
        """
        key = Key.derived(secret, KEY_PURPOSE)
        name, content = key_file.make(key, secret, cost)
        storage.write(Kind.KEY, name, content)
        config = _Config(VERSION, hmac.digest(secret, ID_PURPOSE, "sha256").hex(), POLYNOMIAL)
        storage.write(Kind.CONFIG, CONFIG_NAME, key.seal(msgspec.json.encode(config)))

    @classmethod
    def open(cls, storage: Storage, password: bytes) -> Repository:
        """Open a repository and read its index. Raises NotStored, WrongKey, Damaged, RepositoryError."""
        repository = cls.unlock(storage, password)
        repository.read_index()
        return repository

    @classmethod
    def unlock(cls, storage: Storage, password: bytes) -> Repository:
        """Open a repository that does not know yet what is in it. Raises NotStored, WrongKey, Damaged,
        RepositoryError."""
        config = storage.read(Kind.CONFIG, CONFIG_NAME)
        for name in storage.names(Kind.KEY):
            try:
                key = key_file.key_of(name, storage.read(Kind.KEY, name), password)
                break
            except (WrongKey, Damaged):
                continue
        else:
            raise WrongKey("this password opens no key of the repository")
        try:
            decoded = msgspec.json.decode(key.open(config, "the configuration"), type=_Config)
        except msgspec.MsgspecError as error:
            raise Damaged(f"the configuration is damaged: {error}") from None
        if decoded.version != VERSION:
            raise RepositoryError(f"the repository has version {decoded.version}, not {VERSION}: see restic migrate")
        return cls(storage, key, decoded.id)

    def read_index(self) -> None:
        """Find out what is in it now. Who writes locks it before. Raises Damaged, RepositoryError."""
        self.index = RepositoryIndex()
        for name in self.storage.names(Kind.INDEX):
            for pack, blobs in index.decode(self.load_unpacked(Kind.INDEX, name), name):
                self.index.add_pack(pack, blobs)

    # files that are no packs

    def load_unpacked(self, kind: Kind, name: str) -> bytes:
        """Return the content of a file that is no pack. Raises NotStored, Damaged."""
        sealed = self.storage.read(kind, name)
        if hashlib.sha256(sealed).hexdigest() != name:
            raise Damaged(f"{kind}/{name} has content that does not match its name")
        content = self.key.open(sealed, f"{kind}/{name}")
        if content[:1] in (b"{", b"["):  # written by a program that does not compress
            return content
        try:
            plain = zstandard.ZstdDecompressor().stream_reader(content[1:]).read(UNPACKED_BYTES_MAX + 1)
        except zstandard.ZstdError as error:
            raise Damaged(f"{kind}/{name} can't be unpacked: {error}") from None
        if len(plain) > UNPACKED_BYTES_MAX:
            raise Damaged(f"{kind}/{name} exceeds the size limit of such files")
        return plain

    def save_unpacked(self, kind: Kind, content: bytes) -> str:
        """Store a file that is no pack; return its name."""
        sealed = self.key.seal(_COMPRESSED + self._compressor().compress(content))
        name = hashlib.sha256(sealed).hexdigest()
        self.storage.write(kind, name, sealed)
        return name

    # blobs

    def add(self, type: BlobType, content: bytes | memoryview) -> bytes:
        """Store a blob unless the repository has it; return its id."""
        id = hashlib.sha256(content).digest()
        with self._lock:
            if id in self.index or id in self._pending:
                return id
            self._pending.add(id)
        sealed, raw_length = sealed_blob(self.key, self._compressor(), content)
        with self._lock:
            writer = self._packs[type]
            writer.add(id, sealed, raw_length)
            if writer.length < TARGET_BYTES:
                return id
            self._packs[type] = PackWriter(type)
        self._store(writer)
        return id

    def load(self, type: BlobType, id: bytes) -> bytes:
        """Return a blob's content. Raises NotStored, Damaged, RepositoryError."""
        place = self.index.find(id)
        if place is None or place.blob.type is not type:
            raise NotStored(f"{type.word} blob {id.hex()} is not in the repository")
        check_length(place.blob)
        sealed = self.storage.read(Kind.PACK, place.pack.hex(), place.blob.offset, place.blob.length)
        return content_of(self.key, place.blob, sealed)

    def flush(self) -> None:
        """Store what waits, and the index of what was stored. No ``add`` may be under way."""
        for type in BlobType:
            writer, self._packs[type] = self._packs[type], PackWriter(type)
            if writer.blobs:
                self._store(writer)
        self._save_index(all_of_it=True)

    def _store(self, writer: PackWriter) -> None:
        """Store a pack. If that fails, what is in it is not in the repository, and may be added again."""
        try:
            pack, content = writer.finish(self.key)
            self.storage.write(Kind.PACK, pack.hex(), content)
        except BaseException:
            with self._lock:
                self._pending.difference_update(blob.id for blob in writer.blobs)
            raise
        with self._lock:
            self.index.add_pack(pack, writer.blobs)
            self._pending.difference_update(blob.id for blob in writer.blobs)
            self._unindexed.append((pack, writer.blobs))
        self._save_index(all_of_it=False)

    def _save_index(self, *, all_of_it: bool) -> None:
        """Store the index of the packs that no index file names yet, once they are many or ``all_of_it``."""
        with self._lock:
            if not all_of_it and sum(len(blobs) for _, blobs in self._unindexed) < index.BLOBS_PER_FILE_MAX:
                return
            packs, self._unindexed = self._unindexed, []
        while packs:
            count, at = 0, 0
            while at < len(packs) and (at == 0 or count + len(packs[at][1]) <= index.BLOBS_PER_FILE_MAX):
                count += len(packs[at][1])
                at += 1
            self.save_unpacked(Kind.INDEX, index.encode(packs[:at]))
            packs = packs[at:]

    def _compressor(self) -> zstandard.ZstdCompressor:
        """Return this thread's compressor."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._threads, "compressor", None)
        if compressor is None:
            compressor = self._threads.compressor = zstandard.ZstdCompressor(level=LEVEL)
        return compressor

    # snapshots

    def save_snapshot(
        self, directory: str, files: Mapping[str, File], tags: list[str], folders: Iterable[str] = (),
        parent: str | None = None,
    ) -> str:  # fmt: skip
        """Store a snapshot of files, by their paths in one directory, and all that it needs before; return its id.

        ``folders``: those that are to be there even if no file is in them; ``parent``: the snapshot that it was
        compared with. Raises ValueError for a bad path.
        """
        now, root = datetime.now(UTC), _Folder({}, {})
        for path in folders:
            root.inner(snapshot.check_path(path))
        for path, file in files.items():
            *parents, name = snapshot.check_path(path)
            root.inner(parents).files[name] = file
        (name,) = snapshot.check_path(directory)
        tree = self.add(
            BlobType.TREE, snapshot.Tree([snapshot.folder_node(name, self._save_folder(root, now), now)]).encode()
        )
        self.flush()
        made = BackupSnapshot(
            now.isoformat(), tree.hex(), [f"/{directory}"], socket.gethostname(), "novacron", parent, tags or None,
            "novacron",
        )  # fmt: skip
        return self.save_unpacked(Kind.SNAPSHOT, msgspec.json.encode(made))

    def _save_folder(self, folder: _Folder, now: datetime) -> bytes:
        nodes = [snapshot.file_node(name, file, now) for name, file in folder.files.items()]
        nodes += [
            snapshot.folder_node(name, self._save_folder(inner, now), now) for name, inner in folder.folders.items()
        ]
        return self.add(BlobType.TREE, snapshot.Tree(nodes).encode())

    def snapshots(self) -> Iterator[tuple[str, BackupSnapshot]]:
        """Yield all snapshots with their ids. Raises Damaged."""
        for name in self.storage.names(Kind.SNAPSHOT):
            yield name, snapshot.decode_snapshot(self.load_unpacked(Kind.SNAPSHOT, name), name)

    def content(self, made: BackupSnapshot) -> SnapshotContent:
        """Return what is in the one directory of a snapshot that was made here. Raises NotStored, Damaged."""
        listed = SnapshotContent({}, [])
        top = [node for node in self._tree(made.tree).nodes if node.type == "dir" and node.subtree is not None]
        if len(top) != 1 or top[0].subtree is None:
            raise Damaged("the snapshot does not contain exactly one directory, as NovaCron's do")
        waiting = [("", top[0].subtree)]
        while waiting:
            prefix, id = waiting.pop()
            for node in self._tree(id).nodes:
                if len(listed.files) + len(listed.folders) >= ENTRIES_MAX:
                    raise Damaged(f"the snapshot has more than {ENTRIES_MAX} entries")
                try:
                    self._add(listed, prefix, node, waiting)
                except ValueError as error:
                    raise Damaged(f"a directory of the backup is damaged: {error}") from None
        return listed

    @staticmethod
    def _add(found: SnapshotContent, prefix: str, node: snapshot.TreeNode, waiting: list[tuple[str, str]]) -> None:
        """Add an entry to what a snapshot holds; a folder waits to be read. Raises ValueError."""
        path = f"{prefix}{node.name}"
        snapshot.check_path(path)
        if node.type == "file":
            found.files[path] = snapshot.file_of(node)
        elif node.type == "dir" and node.subtree is not None:
            found.folders.append(path)
            waiting.append((f"{path}/", node.subtree))

    def _tree(self, id: str) -> snapshot.Tree:
        try:
            return snapshot.decode_tree(self.load(BlobType.TREE, bytes.fromhex(id)), id)
        except ValueError:
            raise Damaged(f"{id!r} is not a directory id") from None

    # looking after it

    def replace_packs(self, packs: Collection[bytes]) -> None:
        """Give up packs in which something is damaged: what is whole in them is stored again, the rest is known no
        more.

        So nothing that is stored later counts on a damaged blob: whoever has such a block stores it again, and what
        lacked it is whole then. The files of the packs stay, as the damage may be one of reading only: restic's prune
        removes them, its repair finds what is in them. Whoever calls this has the repository for itself. It may be
        ended at any moment, and repeated. Raises RepositoryError.
        """
        files = {name: list(index.decode(self.load_unpacked(Kind.INDEX, name), name))
                 for name in list(self.storage.names(Kind.INDEX))}  # fmt: skip
        entries = [entry for file in files.values() for entry in file]
        self.index = RepositoryIndex()
        for pack, blobs in entries:
            if pack not in packs:
                self.index.add_pack(pack, blobs)
        for pack, blob in [(pack, blob) for pack, blobs in entries if pack in packs for blob in blobs]:
            self._store_again(pack, blob)
        self.flush()
        for name, file in files.items():
            after = [entry for entry in file if entry[0] not in packs]
            if after and after != file:
                self.save_unpacked(Kind.INDEX, index.encode(after))
            if after != file:
                self.storage.remove(Kind.INDEX, name)
        self.read_index()

    def _store_again(self, pack: bytes, blob: Blob) -> None:
        """Store a blob of a pack in another one, if it is whole."""
        with contextlib.suppress(Damaged, NotStored):
            check_length(blob)
            sealed = self.storage.read(Kind.PACK, pack.hex(), blob.offset, blob.length)
            content = content_of(self.key, blob, sealed)
            if hashlib.sha256(content).digest() == blob.id:
                self.add(blob.type, content)


def new_password() -> bytes:
    """Return a new random password, in letters that people can give to restic."""
    return secrets.token_hex(32).encode()
