"""Freeing the room in a repository that no snapshot uses any more, as restic's ``prune`` does; small packs and index
files are put together meanwhile."""

from __future__ import annotations

from typing import NamedTuple

from novacron.backup import index, snapshot
from novacron.backup.errors import Damaged, NotStored
from novacron.backup.index import RepositoryIndex
from novacron.backup.pack import TARGET_BYTES, Blob, BlobType, content_of
from novacron.backup.repository import CONFIG_NAME, Repository
from novacron.backup.storage import Kind

UNUSED_SHARE_MAX = 0.25
"""Of a pack: with more, what is used of it is stored again."""
SMALL_BYTES = TARGET_BYTES // 4
"""Packs below are put together."""
REPACKED_BYTES_MAX = 256 << 20
"""Stored again at one time; the rest is left to the next."""

Packs = dict[bytes, list[Blob]]


class Pruned(NamedTuple):
    """What became of the packs."""

    removed: int
    repacked: int


class _Plan(NamedTuple):
    keep: Packs
    repack: Packs


def prune(repository: Repository) -> Pruned:
    """Remove what no snapshot uses. Whoever calls this has the repository for itself.

    Nothing is removed before all that replaces it is stored, so it may be ended at any moment, and repeated. Where a
    snapshot can't be read, nothing is removed at all. Raises RepositoryError.
    """
    index_files = list(repository.storage.names(Kind.INDEX))
    packs = _packs(repository, index_files)
    repository.read_index()
    used = _used(repository)
    repository.storage.read(Kind.CONFIG, CONFIG_NAME)  # no snapshots, or a disk that was unmounted meanwhile?
    plan = _plan(packs, used, repository.index)
    present = list(repository.storage.names(Kind.PACK))
    removable = [name for name in present if bytes.fromhex(name) not in plan.keep]
    if not removable and len(index_files) <= 1 + sum(map(len, packs.values())) // index.BLOBS_PER_FILE_MAX:
        return Pruned(0, 0)
    repository.index = RepositoryIndex()
    for pack, blobs in plan.keep.items():
        repository.index.add_pack(pack, blobs)
    for pack, blobs in plan.repack.items():
        for blob in blobs:
            if blob.id in used and blob.id not in repository.index:
                repository.add(blob.type, _content(repository, pack, blob))
    repository.flush()
    for part in _parts(plan.keep):
        repository.save_unpacked(Kind.INDEX, index.encode(part.items()))
    for name in index_files:
        repository.storage.remove(Kind.INDEX, name)
    for name in removable:
        repository.storage.remove(Kind.PACK, name)
    repository.read_index()
    return Pruned(len(removable), len(plan.repack))


def _packs(repository: Repository, index_files: list[str]) -> Packs:
    found: Packs = {}
    for name in index_files:
        for pack, blobs in index.decode(repository.load_unpacked(Kind.INDEX, name), name):
            found.setdefault(pack, blobs)
    return found


def _content(repository: Repository, pack: bytes, blob: Blob) -> bytes:
    return content_of(repository.key, blob, repository.storage.read(Kind.PACK, pack.hex(), blob.offset, blob.length))


def _used(repository: Repository) -> set[bytes]:
    """Return the ids of all blobs that any snapshot needs. Raises NotStored, Damaged."""
    used = set[bytes]()
    waiting = [bytes.fromhex(made.tree) for _, made in repository.snapshots()]
    while waiting:
        id = waiting.pop()
        if id in used:
            continue
        used.add(id)
        tree = snapshot.decode_tree(repository.load(BlobType.TREE, id), id.hex())
        try:
            blobs, subtrees = _named(tree)
        except ValueError as error:
            raise Damaged(f"directory {id.hex()} is damaged: {error}") from None
        used.update(blobs)
        waiting += subtrees
    missing = next((id for id in used if id not in repository.index), None)
    if missing is not None:
        raise NotStored(f"blob {missing.hex()}, which a backup needs, is not in the repository: see restic check")
    return used


def _named(tree: snapshot.Tree) -> tuple[list[bytes], list[bytes]]:
    """Return the ids of the data and of the directories that a directory names. Raises ValueError."""
    blobs = [bytes.fromhex(part) for node in tree.nodes for part in node.content or ()]
    return blobs, [bytes.fromhex(node.subtree) for node in tree.nodes if node.subtree is not None]


def _plan(packs: Packs, used: set[bytes], places: RepositoryIndex) -> _Plan:
    """Decide which packs stay, and of which the used blobs are stored again; the rest goes."""
    keep, repack, small, repacked_bytes = Packs(), Packs(), Packs(), 0
    for pack, blobs in packs.items():
        total = sum(blob.length for blob in blobs)
        needed = sum(blob.length for blob in blobs if _needed(pack, blob, used, places))
        if not needed:
            continue
        wasteful, is_small = total - needed > UNUSED_SHARE_MAX * total, total < SMALL_BYTES
        if not (wasteful or is_small) or repacked_bytes + needed > REPACKED_BYTES_MAX:
            keep[pack] = blobs
            continue
        repacked_bytes += needed
        (repack if wasteful else small)[pack] = blobs
    # One small pack of each type is the rest of what was put together last.
    if repack or len(small) > len(BlobType):
        return _Plan(keep, {**repack, **small})
    return _Plan({**keep, **small}, {})


def _needed(pack: bytes, blob: Blob, used: set[bytes], places: RepositoryIndex) -> bool:
    """Say whether a snapshot needs a blob from this pack, and not from another one that has it, too."""
    place = places.find(blob.id)
    return blob.id in used and place is not None and place.pack == pack


def _parts(packs: Packs) -> list[Packs]:
    """Return packs in parts, each for one index file."""
    parts, count = [Packs()], 0
    for pack, blobs in packs.items():
        if count and count + len(blobs) > index.BLOBS_PER_FILE_MAX:
            parts.append(Packs())
            count = 0
        parts[-1][pack] = blobs
        count += len(blobs)
    return [part for part in parts if part]
