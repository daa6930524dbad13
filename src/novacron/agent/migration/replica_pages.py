"""The pages of a replica that is on this node, for the VM itself when it moves here: only what differs is sent then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from novacron.disk.chain import BLOCK_BYTES, Chain
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.page_ring import PAGE

PAGES_MAX = 1 << 20
"""4 GiB of what was written: the rest is sent. Each has 16 bytes on the link, and 60 in memory here."""
PAGES_PER_BLOCK = BLOCK_BYTES // PAGE


class ReplicaBase:
    """The newest disk of a replica as far as its layers have it, in the order of the disk. Points may be merged
    meanwhile: what is read is checked."""

    sealed = False

    def __init__(self, kind: str, vm: str, chain: Chain, hash: PageHash) -> None:
        """Called in a thread. Raises Unacceptable, OSError."""
        self.kind, self.name = kind, f"replica:{vm}"
        self.digests: Sequence[bytes] = ()
        self._chain = chain
        self._blocks: list[int] = []
        digests: list[bytes] = []
        for block in chain.written():
            if len(digests) >= PAGES_MAX:
                break
            data = memoryview(chain.read(block))
            self._blocks.append(block)
            digests += [hash.digest(data[at : at + PAGE]) for at in range(0, BLOCK_BYTES, PAGE)]
        self.digests = digests

    def read(self, index: int, count: int) -> bytes:
        first, last = index // PAGES_PER_BLOCK, (index + count - 1) // PAGES_PER_BLOCK
        data = b"".join(self._chain.read(block) for block in self._blocks[first : last + 1])
        begin = index % PAGES_PER_BLOCK * PAGE
        return data[begin : begin + count * PAGE]

    def __del__(self) -> None:
        self._chain.close()


def base_of(kind: str, vm: str, image: Path, layers: Sequence[Path], hash: PageHash) -> ReplicaBase:
    """Return the pages of layers over an image's disk. Called in a thread. Raises Unacceptable, OSError."""
    chain = Chain(image, layers)
    try:
        return ReplicaBase(kind, vm, chain, hash)
    except BaseException:
        chain.close()
        raise
