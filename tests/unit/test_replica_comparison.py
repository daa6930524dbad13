"""Comparisons of a VM's disk with what the node that keeps its replica has: what differs is found, and only that."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import operator
import random
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest

from novacron.agent.replicas import points as points_module
from novacron.agent.replicas.points import Point, ReplicaPoints
from novacron.agent.replicas.storage import ReplicaStorage
from novacron.agent.replication import comparison
from novacron.agent.replication.comparison import (
    NO_BLOCK,
    RECORD,
    RUN,
    VOLUME,
    Answer,
    Answering,
    Comparison,
    ComparisonPlayer,
    OpenedDisk,
    Runs,
)
from novacron.agent.replication.rounds import Compared
from novacron.agent.replication.sender import _Plan, _Rounds
from novacron.disk import difference
from novacron.disk.chain import BLOCK_BYTES, Chain
from novacron.disk.errors import Unacceptable
from novacron.disk.stream import PAGE, DiskRecorder, Head, StreamError, VolumeInfo
from novacron.dwcp.frames import ErrorCode, ProtocolError
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.sender import SendFailed
from novacron.model.firmware_state import FirmwareState
from novacron.model.replica import RoundKind
from novacron.wire import messages as wire
from tests.chance import fixed_seed
from tests.unit.test_replica_points import arrive, content, image, layer, numbers, reopened

DIGEST = PageHash(b"k" * 32).digest
BLOCKS = (4 << 20) // BLOCK_BYTES
__all__ = ["image"]


def compared(here: Chain, sender: Chain, path: Path) -> list[int]:
    """Return the blocks that a comparison finds, by way of what goes over the wire."""
    comparison.describe(sender, DIGEST, path)
    raw = path.read_bytes()
    assert raw and len(raw) % PAGE == 0
    found = Comparison(here, DIGEST, sender.size_bytes)
    for block, digest in RECORD.iter_unpack(raw[: len(raw) // RECORD.size * RECORD.size]):
        if block != NO_BLOCK:
            found.take(block, digest)
    found.end()
    return list(comparison.unpack(found.differ.pack(), BLOCKS))


def test_what_differs_is_found_whatever_either_side_wrote(image: Path, tmp_path: Path) -> None:
    ours = [layer(tmp_path / "a", "-P 1 0 64k", "-P 2 64k 64k", "-z 128k 64k", "-P 105 192k 64k", "-P 9 256k 64k")]
    theirs = [layer(tmp_path / "b", "-P 1 0 64k", "-P 3 64k 64k", "-P 105 320k 64k", "-P 7 384k 64k")]
    with Chain(image, ours) as here, Chain(image, theirs) as sender:
        # Blocks 3 and 5 are as in the image ("i" is 105), though a layer has them.
        assert compared(here, sender, tmp_path / "digests") == [1, 2, 4, 6]


def test_a_layer_of_what_differs_makes_one_disk_of_the_other(image: Path, tmp_path: Path) -> None:
    chance = random.Random(fixed_seed())
    for case in range(5):
        chains = []
        for side in "ab":
            writes = [
                f"-P {chance.randrange(3)} {chance.randrange(BLOCKS)}x64k"
                for _ in range(12)
            ]  # fmt: skip
            blocks = sorted({int(write.split()[2].removesuffix("x64k")): write.split()[1] for write in writes}.items())
            path = tmp_path / f"{case}{side}"
            values = {block: bytes([int(value)]) * BLOCK_BYTES for block, value in blocks}
            difference.write(path, 4 << 20, list(values), values.__getitem__)
            chains.append([path])
        with Chain(image, chains[0]) as here, Chain(image, chains[1]) as sender:
            differ = compared(here, sender, tmp_path / f"digests{case}")
            difference.write(tmp_path / f"d{case}", sender.size_bytes, differ, sender.read)
        wanted = content(image, chains[1], tmp_path / "raw")
        assert content(image, [*chains[0], tmp_path / f"d{case}"], tmp_path / "raw") == wanted
        with Chain(image, chains[0]) as here, Chain(image, chains[0]) as same:
            assert compared(here, same, tmp_path / f"same{case}") == []


def test_digests_that_are_not_in_order_are_refused(image: Path, tmp_path: Path) -> None:
    with Chain(image, [layer(tmp_path / "a", "-P 1 0 64k")]) as here:
        found = Comparison(here, DIGEST, 4 << 20)
        found.take(4, b"")
        with pytest.raises(StreamError, match="not in order"):
            found.take(4, b"")


def test_digests_of_blocks_that_no_disk_has_are_refused(image: Path, tmp_path: Path) -> None:
    with Chain(image, [layer(tmp_path / "a", "-P 1 0 64k")]) as here:
        for disk_bytes, end in ((0, BLOCKS), (8 << 20, 2 * BLOCKS)):  # the sender's disk may have grown since
            found = Comparison(here, DIGEST, disk_bytes)
            found.take(end - 1, b"")
            with pytest.raises(StreamError, match=rf"digest of block {end}, and the disk has {end} blocks"):
                found.take(end, b"")


def test_blocks_that_differ_side_by_side_take_the_room_of_one_run() -> None:
    runs = Runs()
    for block in (*range(7, 200_000), 200_001):
        runs.add(block)
    assert len(runs) == 2 and list(comparison.unpack(runs.pack(), 200_002)) == [*range(7, 200_000), 200_001]
    assert list(comparison.unpack(Runs().pack(), 1)) == []


def test_an_answer_that_names_many_runs_is_unpacked_as_it_is_used() -> None:
    """It came from a peer, and a few kilobytes unpack to a thousand times as much."""
    packed = zlib.compress(b"".join(RUN.pack(2 * number, 1) for number in range(100_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in comparison.unpack(packed, 200_000)) == 100_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_an_answer_that_unpacks_to_more_than_any_may_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "ANSWER_BYTES_MAX", 10 * RUN.size)
    packed = zlib.compress(b"".join(RUN.pack(number, 1) for number in range(11)))
    with pytest.raises(StreamError, match="too long"):
        list(comparison.unpack(packed, BLOCKS))


async def test_more_digests_than_any_disk_has_are_refused_before_they_come() -> None:
    opened = Mock()
    answering = Answering(Back().session, opened, DIGEST, asyncio.get_running_loop())
    volume = VolumeInfo(VOLUME, comparison.VOLUME_BYTES_MAX + 1, comparison.key_check(DIGEST))
    with pytest.raises(StreamError, match="too many to compare"):
        answering.open(Head(1, (volume,)))
    opened.assert_not_called()


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (b"no zlib", "can't be read"), (zlib.compress(b"odd"), "can't be read"),
        (zlib.compress(RUN.pack(0, 1))[:-5], "incomplete"), (zlib.compress(RUN.pack(60, 5)), "does not have"),
        (zlib.compress(RUN.pack(9, 1) + RUN.pack(9, 1)), "does not have"), (zlib.compress(RUN.pack(1, 0)), "not have"),
    ],
)  # fmt: skip
def test_answers_that_make_no_sense_are_refused(packed: bytes, why: str) -> None:
    with pytest.raises(StreamError, match=why):
        list(comparison.unpack(packed, BLOCKS))


def test_an_answer_counts_as_a_whole() -> None:
    answer = Answer()
    answer.take(b"\0\0\0\5\x85")
    with pytest.raises(StreamError, match="incomplete"):
        answer.result()


class Back:
    """A return channel whose peer takes what is sent, or never says that it did."""

    def __init__(self, *, is_heard: bool = True) -> None:
        self.answer, self.is_heard = Answer(), is_heard
        self.session = Mock(back=self, has_failed=False)

    async def send(self, data: bytes) -> None:
        for at in range(0, len(data), 7):
            self.answer.take(data[at : at + 7])

    async def drain(self) -> None:
        if not self.is_heard:
            await asyncio.Event().wait()


async def asked(back: Back, opened: Callable[[], OpenedDisk], digests: bytes, check: str) -> Compared:
    """Let digests come in as a session's stream, and return the answer."""
    answering = Answering(back.session, opened, DIGEST, asyncio.get_running_loop())
    player = ComparisonPlayer(answering)

    def play() -> None:
        recorder = DiskRecorder([VolumeInfo(VOLUME, len(digests), check)])
        player.write(recorder.read())
        recorder.select(0)
        player.write(recorder.read())
        recorder.write(0, digests)
        player.write(recorder.read())
        player.finish()

    try:
        playing = asyncio.create_task(asyncio.to_thread(play))
        if not back.is_heard:
            player.abort()
        await playing
    finally:
        answering.close()
    return back.answer.result()


async def test_a_receiver_answers_which_blocks_differ(image: Path, tmp_path: Path) -> None:
    ours, theirs = [layer(tmp_path / "a", "-P 1 0 64k")], [layer(tmp_path / "b", "-P 2 0 128k")]
    with Chain(image, theirs) as sender:
        comparison.describe(sender, DIGEST, tmp_path / "digests")
    digests, check = (tmp_path / "digests").read_bytes(), comparison.key_check(DIGEST)
    found = await asked(Back(), lambda: OpenedDisk(Chain(image, ours), "f" * 16, 4 << 20), digests, check)
    assert (found.since, found.disk_bytes, list(comparison.unpack(found.differ, BLOCKS))) == ("f" * 16, 4 << 20, [0, 1])

    def nothing() -> OpenedDisk:
        raise Unacceptable("it has no data of the disk yet")

    assert await asked(Back(), nothing, digests, check) == Compared(lacks="it has no data of the disk yet")
    with pytest.raises(ProtocolError, match="different keys"):
        await asked(Back(), nothing, digests, "00")
    with pytest.raises(StreamError, match="could not be given"):
        await asked(Back(is_heard=False), nothing, digests, check)


def test_what_a_vm_left_is_the_base_of_its_replica_and_no_point(image: Path, tmp_path: Path) -> None:
    store = ReplicaStorage(tmp_path / "replicas")
    left = [layer(tmp_path / "shared", "-P 1 0 64k"), layer(tmp_path / "own", "-P 2 64k 64k")]
    wanted = content(image, left, tmp_path / "raw")
    store.tell(["vm-b"])
    assert not store.keep_former("vm-a", left), "no replica of it is to come here"
    store.forget()
    assert store.keep_former("vm-a", left) and store.keep_former("vm-a", left), "the server has not said so yet"
    for path in left:
        path.unlink()
    store.tell(["vm-a"])
    store.clear_formers()
    points = store.find("replica-1", "vm-a").points
    points.open()
    points.adopt(store.former("vm-a"), 4 << 20, "f" * 16)
    assert (points.points, points.newest_round, store.former("vm-a").exists()) == ((), "f" * 16, False)
    assert content(image, points.newest_layers(), tmp_path / "raw") == wanted
    again = ReplicaPoints(points.directory, "vm-a")
    again.open()
    assert again.newest_round == "f" * 16 and again.layers_of(again.newest) is None, "nobody may go back to it"
    layer(again.receiving() / "0", "-P 3 128k 64k")
    again.add(Point(again.newest + 1, "1" * 16, 1.0, 1, False, FirmwareState()), whole=False)
    [point] = again.points
    chain = again.layers_of(point.number)
    assert chain is not None and len(chain) == 3 and again.newest_round == "1" * 16
    merge = again.to_merge(1)
    assert merge is not None and merge.lower.path == chain[0]


@pytest.mark.parametrize("ends", ["while it looks", "while it answers"])
async def test_a_receiver_gives_an_answer_up_when_its_session_fails(image: Path, tmp_path: Path, ends: str) -> None:
    """The thread that answers would else be waited for, and no other session could begin."""
    ours = [layer(tmp_path / "a", "-P 1 0 128k")]
    with Chain(image, [layer(tmp_path / "b")]) as sender:
        comparison.describe(sender, DIGEST, tmp_path / "digests")
    digests, check = (tmp_path / "digests").read_bytes(), comparison.key_check(DIGEST)
    back, reads = Back(), 0

    class FailingChain(Chain):
        def read(self, block: int) -> bytes:
            nonlocal reads
            reads += 1
            back.session.has_failed = True
            return super().read(block)

    async def drain() -> None:
        back.session.has_failed = True
        await asyncio.Event().wait()

    chain = FailingChain if ends == "while it looks" else Chain
    back.drain = drain  # type: ignore[method-assign]
    why = "nobody waits" if ends == "while it looks" else "could not be given"
    with pytest.raises(StreamError, match=why):
        opened = partial(OpenedDisk, chain(image, ours), "f" * 16, 4 << 20)
        await asyncio.wait_for(asked(back, opened, digests, check), 30)
    assert reads == (ends == "while it looks")


@pytest.mark.parametrize("fails_in", ["opening", "reading", "the end"])
async def test_a_receiver_that_cannot_read_its_disk_says_so(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    """Else no round would ever come that takes the place of what is damaged."""
    theirs = ["-P 2 0 64k"] if fails_in == "reading" else []
    ours, sent = [layer(tmp_path / "a", "-P 1 1M 64k")], [layer(tmp_path / "b", *theirs)]
    with Chain(image, sent) as sender:
        comparison.describe(sender, DIGEST, tmp_path / "digests")

    def damaged(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    def opened() -> OpenedDisk:
        monkeypatch.setattr(Chain, "read", damaged)
        return OpenedDisk(Chain(image, ours if fails_in != "opening" else [tmp_path / "lost"]), "f" * 16, 4 << 20)

    digests, check = (tmp_path / "digests").read_bytes(), comparison.key_check(DIGEST)
    found = await asked(Back(), opened, digests, check)
    why = "No such file or directory" if fails_in == "opening" else "Input/output error"
    assert found == Compared(lacks=f"the disk there can't be read: {why}")


async def test_a_receiver_says_so_if_more_differs_than_an_answer_may_name(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chain(image, [layer(tmp_path / "b", "-P 2 0 64k", "-P 2 128k 64k")]) as sender:
        comparison.describe(sender, DIGEST, tmp_path / "digests")
    monkeypatch.setattr(comparison, "ANSWER_BYTES_MAX", 2 * RUN.size)
    digests, check = (tmp_path / "digests").read_bytes(), comparison.key_check(DIGEST)
    back = Back()
    monkeypatch.setattr(back.answer, "take", back.answer._raw.extend)
    monkeypatch.setattr(back.answer, "result", lambda: msgspec.msgpack.decode(back.answer._raw[4:], type=Compared))
    here = Chain(image, [layer(tmp_path / "a")])
    found = await asked(back, lambda: OpenedDisk(here, "f" * 16, 4 << 20), digests, check)
    assert found == Compared(lacks="the differences are in 2 places or more, too many for one answer")


def test_an_answer_that_is_too_long_is_refused_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "ANSWER_BYTES_MAX", 4)
    answer = Answer()
    for _ in range(9):
        answer.take(b"12345")  # which must not end the session
    with pytest.raises(StreamError, match="too long"):
        answer.result()


@pytest.mark.parametrize(
    ("error", "is_sent"),
    [
        (StreamError("the answer to a comparison is too long"), True), (Unacceptable("compressed"), True),
        (OSError(errno.ENOSPC, "No space left"), True), (SendFailed("EIO", ErrorCode.LOCAL_FAILURE), True),
        (SendFailed("the link broke"), False), (SendFailed("refused", ErrorCode.NOT_EXPECTED), False),
        (TimeoutError(), False), (ConnectionResetError(), False),
    ],
)  # fmt: skip
async def test_what_cannot_be_compared_is_sent_as_a_whole_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_sent: bool
) -> None:
    wanted = wire.ReplicaSent("replica-0123456789abcdef", "vm-a", "host-b", "host-b:7445", 30, True)
    rounds = _Rounds(Mock(), wanted, tmp_path)
    monkeypatch.setattr(rounds, "_difference", AsyncMock(side_effect=error))
    plan, copied = _Plan(wanted.id), Mock()
    if not is_sent:
        with pytest.raises(type(error)):
            await rounds._reduced(Mock(), plan, copied)
        return
    assert await rounds._reduced(Mock(), plan, copied) is copied
    assert plan.kind is RoundKind.WHOLE and plan.reason.endswith(
        f"; the whole disk was sent: the comparison failed: {error}"
    )


@pytest.fixture
def left_beside_points(tmp_path: Path) -> tuple[ReplicaStorage, ReplicaPoints]:
    """A VM goes away from a node that has points of it."""
    store = ReplicaStorage(tmp_path / "replicas")
    points = store.find("replica-1", "vm-a").points
    points.open()
    arrive(points, 1, "-P 1 0 64k", whole=True)
    arrive(points, 2, "-P 2 64k 64k")
    assert store.keep_former("vm-a", [layer(tmp_path / "shared", "-P 8 0 64k"), layer(tmp_path / "own", "-P 9 1M 64k")])
    return store, points


def reads(image: Path, points: ReplicaPoints, number: int, raw: Path) -> bytes:
    chain = points.layers_of(number)
    assert chain is not None
    return content(image, chain, raw)


def test_points_stay_until_a_round_over_what_the_vm_left_is_one(
    left_beside_points: tuple[ReplicaStorage, ReplicaPoints], image: Path, tmp_path: Path
) -> None:
    store, points = left_beside_points
    before = reads(image, points, 2, tmp_path / "raw")
    points.adopt(store.former("vm-a"), 4 << 20, "f" * 16)
    for seen in (points, reopened(points)):
        assert numbers(seen) == [1, 2] and seen.newest_round == "f" * 16 and seen.layer_count == 2
        assert reads(image, seen, 2, tmp_path / "raw") == before, "nothing has come yet: they are all that there is"
        assert content(image, seen.newest_layers(), tmp_path / "raw")[1 << 20] == 9
        merge = seen.to_merge(2)
        assert merge is None
    store.keep_former("vm-a", [layer(tmp_path / "again", "-P 7 1M 64k")])  # it was here, and goes, once more
    points.adopt(store.former("vm-a"), 4 << 20, "e" * 16)
    assert numbers(points) == [1, 2] and points.newest_round == "e" * 16 and points.layer_count == 1
    arrive(points, points.newest + 1, "-P 3 2M 64k")
    for seen in (points, reopened(points)):
        [number] = numbers(seen)
        disk = reads(image, seen, number, tmp_path / "raw")
        assert (disk[0], disk[1 << 20], disk[2 << 20]) == (ord("i"), 7, 3) and seen.layer_count == 2
        assert len(list(seen.directory.iterdir())) == 3, "the points before are gone, with their layers"


def test_a_whole_round_takes_the_place_of_what_the_vm_left_and_of_the_points(
    left_beside_points: tuple[ReplicaStorage, ReplicaPoints],
) -> None:
    store, points = left_beside_points
    points.adopt(store.former("vm-a"), 4 << 20, "f" * 16)
    arrive(points, points.newest + 1, "-P 3 2M 64k", whole=True)
    assert len(numbers(points)) == points.layer_count == 1 and points.newest_round != "f" * 16


@pytest.mark.parametrize("step", ["os.link", "os.chown", "points.make_durable", "private_file.write", "shutil.rmtree"])
@pytest.mark.parametrize("nth", [1, 2])
def test_points_outlive_a_kill_while_what_the_vm_left_is_taken(
    left_beside_points: tuple[ReplicaStorage, ReplicaPoints], image: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, step: str, nth: int,
) -> None:  # fmt: skip
    store, points = left_beside_points
    before = reads(image, points, 2, tmp_path / "raw")
    calls = 0
    where = (
        f"novacron.agent.replicas.{step}" if step.startswith("points.") else f"novacron.agent.replicas.points.{step}"
    )
    real = operator.attrgetter(step.removeprefix("points."))(points_module)

    def killed(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(where, killed)
        points.adopt(store.former("vm-a"), 4 << 20, "f" * 16)
    again = reopened(points)
    assert numbers(again) == [1, 2] and reads(image, again, 2, tmp_path / "raw") == before
    if store.former("vm-a").exists():
        again.adopt(store.former("vm-a"), 4 << 20, "e" * 16)
    assert again.layer_count == 2 and content(image, again.newest_layers(), tmp_path / "raw")[1 << 20] == 9
    arrive(again, again.newest + 1, "-P 3 2M 64k")
    assert len(numbers(reopened(again))) == 1


def test_what_a_vm_left_goes_when_no_replica_is_to_come(tmp_path: Path) -> None:
    store = ReplicaStorage(tmp_path / "replicas")
    assert store.keep_former("vm-a", [layer(tmp_path / "own")])
    store.clear_formers()
    assert store.former("vm-a").exists(), "nobody has said yet"
    store.tell(())
    store.clear_formers()
    assert not store.former("vm-a").exists()


def test_what_a_vm_left_is_refused_if_it_leads_elsewhere_or_is_too_large(tmp_path: Path) -> None:
    store = ReplicaStorage(tmp_path / "replicas")
    points = store.find("replica-1", "vm-a").points
    points.open()
    for layers, why in (
        ([layer(tmp_path / "large", size=8 << 20)], "8388608 bytes"),
        ([layer(tmp_path / "x")] * 5, "5 layers"),
    ):
        assert store.keep_former("vm-a", layers)
        with pytest.raises(Unacceptable, match=why):
            points.adopt(store.former("vm-a"), 4 << 20, "f" * 16)
        assert points.newest_round == ""
