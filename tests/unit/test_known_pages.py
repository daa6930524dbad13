"""What a node knows of its running VMs' memory before another VM of the same image arrives."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from novacron.agent.migration import known_pages
from novacron.agent.migration.known_pages import ImageBases, KnownPages, LocalVm
from novacron.agent.vm.tenant import Tenant
from novacron.dwcp.page_codec import PageHash
from novacron.qemu.memory import PAGE

KEY = Tenant("p", b"k" * 32)


class Memory:
    """A guest's pages; counts how often all of them were read."""

    looks = 0

    def __init__(self, *contents: bytes) -> None:
        self.contents = [content * PAGE for content in contents]

    def pages(self) -> Iterator[tuple[int, bytes]]:
        Memory.looks += 1
        yield from ((number * PAGE, page) for number, page in enumerate(self.contents))

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self.contents)[offset : offset + length]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(known_pages, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def memory_of(machine: Any, size: int) -> Any:
        return machine.memory

    monkeypatch.setattr(known_pages, "_memory", memory_of)
    Memory.looks = 0
    return now


def neighbour(vm: str, *contents: bytes, image: str = "debian", tenant: Tenant = KEY) -> LocalVm:
    machine = SimpleNamespace(pid=hash(vm), memory=Memory(*contents))
    return LocalVm(vm, tenant, image, cast(Any, machine), len(contents) * PAGE)


def here(tmp_path: Path) -> KnownPages:
    return KnownPages(cast(Any, SimpleNamespace(pages_dir=tmp_path, pages_bytes_max=1 << 30, reuse=("sibling",))))


def arrive(node: KnownPages, *neighbours: LocalVm, tenant: Tenant = KEY) -> list[tuple[str, list[bytes]]]:
    image = SimpleNamespace(info=SimpleNamespace(name="debian", digest="d"))
    bases = asyncio.run(node.for_arrival("comes", cast(Any, image), tenant, list(neighbours)))
    return [(base.name, list(base.digests)) for base in bases]


def digests(*contents: bytes) -> list[bytes]:
    return [PageHash(KEY.key).digest(content * PAGE) for content in contents]


def test_a_surveyed_vm_is_not_surveyed_again_when_a_sibling_arrives(tmp_path: Path, clock: list[float]) -> None:
    node, sibling = here(tmp_path), neighbour("one", b"a", b"\0", b"b", b"a")
    asyncio.run(node.survey([sibling]))
    assert Memory.looks == 1
    assert arrive(node, sibling) == [("sibling:one", digests(b"a", b"b"))]
    assert Memory.looks == 1


def test_of_two_siblings_the_surveyed_one_is_used(tmp_path: Path, clock: list[float]) -> None:
    node, first, two = here(tmp_path), neighbour("one", b"a"), neighbour("two", b"b")
    asyncio.run(node.survey([two]))
    assert arrive(node, first, two) == [("sibling:two", digests(b"b"))]
    assert Memory.looks == 1


def test_without_an_earlier_survey_a_vm_is_surveyed_when_a_sibling_arrives(tmp_path: Path, clock: list[float]) -> None:
    node, sibling = here(tmp_path), neighbour("one", b"a")
    assert arrive(node, sibling) == [("sibling:one", digests(b"a"))]
    assert Memory.looks == 1


def test_surveys_are_repeated_at_growing_intervals(tmp_path: Path, clock: list[float]) -> None:
    node, sibling = here(tmp_path), neighbour("one", b"a")
    times = []
    for _ in range(3600):
        before = Memory.looks
        asyncio.run(node.survey([sibling]))
        if Memory.looks > before:
            times.append(clock[0] - 1000)
        clock[0] += 1
    assert times[:5] == [0, 20, 60, 140, 300]
    assert max(b - a for a, b in itertools.pairwise(times)) == known_pages.SURVEY_AGAIN_S_MAX


def test_one_vm_of_each_image_and_project_is_surveyed_up_to_a_limit(tmp_path: Path, clock: list[float]) -> None:
    node = here(tmp_path)
    others = Tenant("q", b"q" * 32)
    every = [neighbour("one", b"a"), neighbour("two", b"a"), neighbour("three", b"a", tenant=others)]
    every += [neighbour(f"vm-{number}", b"a", image=f"image-{number}") for number in range(20)]
    for _ in range(50):
        asyncio.run(node.survey(every))
    assert Memory.looks == known_pages.SURVEYS_MAX


def test_the_survey_of_a_vm_that_ended_or_restarted_is_dropped(tmp_path: Path, clock: list[float]) -> None:
    node, sibling = here(tmp_path), neighbour("one", b"a")
    asyncio.run(node.survey([sibling]))
    again = neighbour("one", b"b")
    cast(Any, again.machine).pid = -1
    assert arrive(node, again) == [("sibling:one", digests(b"b"))]
    asyncio.run(node.survey([]))
    assert not node._surveys


def test_pages_of_another_project_are_never_used(tmp_path: Path, clock: list[float]) -> None:
    node, sibling = here(tmp_path), neighbour("one", b"a")
    asyncio.run(node.survey([sibling]))
    assert arrive(node, sibling, tenant=Tenant("q", b"q" * 32)) == []


def test_a_vm_whose_memory_cannot_be_read_blocks_no_other_survey(tmp_path: Path, clock: list[float]) -> None:
    class Gone(Memory):
        def pages(self) -> Iterator[tuple[int, bytes]]:
            raise OSError("gone")

    node, gone, sibling = here(tmp_path), neighbour("gone", b"a"), neighbour("one", b"b", image="other")
    cast(Any, gone.machine).memory = Gone(b"a")
    asyncio.run(node.survey([gone, sibling]))
    assert list(node._surveys) == [(KEY, "other")]


def image_base(pages: int) -> Any:
    return SimpleNamespace(digests=range(pages))


def test_image_digests_stay_within_their_limit_and_the_least_recently_used_are_dropped() -> None:
    size = known_pages.BYTES_PER_IMAGE_PAGE
    bases = ImageBases(bytes_max=100 * size)
    keys = [(f"image-{number}", "disk", KEY) for number in range(4)]
    for key in keys[:2]:
        bases.put(key, image_base(50))
    assert bases.get(keys[0]) is not None, "used again: the other one goes first"
    bases.put(keys[2], image_base(30))
    assert bases.get(keys[1]) is None and bases.get(keys[0]) is not None and bases.get(keys[2]) is not None
    assert bases.bytes == 80 * size
    bases.put(keys[3], image_base(101))
    assert bases.get(keys[3]) is None and bases.bytes == 80 * size, "what has no room at all empties nothing"
    bases.put(keys[2], image_base(40))
    assert bases.bytes == 90 * size, "what takes another's place is counted once"
