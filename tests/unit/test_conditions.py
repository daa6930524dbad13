"""Conditions of nodes: what makes each, what keeps VMs away, and that none flaps."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.host import conditions as host
from novacron.agent.host.conditions import DiskLook, HostConditions, MemoryJudge, MemoryLook, judge_disk
from novacron.agent.host.peer_reach import REACHABLE_AFTER_S, UNREACHABLE_AFTER_S, PeerReach
from novacron.agent.host.refused_frames import TRUSTED
from novacron.control import gateways
from novacron.local.doctor import running
from novacron.local.doctor.finding import Grade
from novacron.model.condition import (
    KEEPS_VMS_AWAY,
    ConditionReason,
    ConditionStatus,
    ConditionType,
    NodeCondition,
    NodeFacts,
    PeersSeen,
    ReportedCondition,
    UnreachablePeer,
    dated,
    evaluate,
    worth_an_event,
)
from novacron.model.errors import NoCapacity
from novacron.model.node import Node
from novacron.model.placement import Fleet, Wish
from novacron.model.vm import Vm, VmStatus
from novacron.store import imports, volumes
from novacron.store.fleet import why_not
from novacron.store.network_members import Overlay
from novacron.store.replicas import why_not as why_no_replica
from novacron.wire import messages as wire
from tests.support.fleet import node, vm

R, GIB = ConditionReason, 1 << 30
NOW = datetime(2027, 1, 1, tzinfo=UTC)
B, C = UnreachablePeer("b", "no answer within 2 s"), UnreachablePeer("c", "Connection refused")
FINE = NodeFacts("a", True, NOW, 0.0, NOW.timestamp() + 30 * 86_400, PeersSeen(2), frozenset(), NOW)


def reported(type: ConditionType, reason: ConditionReason = R.DISK_WRITABLE) -> ReportedCondition:
    status = ConditionStatus.TRUE if reason in (R.DISK_WRITABLE, R.MEMORY_AVAILABLE) else ConditionStatus.FALSE
    return ReportedCondition(type, status, reason, f"{reason}; do something")


AGENT_SAYS = (reported(ConditionType.DISK), reported(ConditionType.MEMORY, R.MEMORY_AVAILABLE), TRUSTED)


def condition(type: ConditionType, reason: ConditionReason, status: str = "false", at: datetime = NOW) -> NodeCondition:
    return NodeCondition(type, ConditionStatus(status), reason, f"{reason} in words; what to do", at)


def test_a_node_with_which_all_is_well_has_every_condition_and_each_is_true() -> None:
    found = evaluate(FINE, AGENT_SAYS)
    assert [condition.type for condition in found] == list(ConditionType)
    assert {condition.status for condition in found} == {ConditionStatus.TRUE}


@pytest.mark.parametrize(
    ("changes", "type", "reason", "words"),
    [
        ({"peers": PeersSeen(1, (B,)), "peers_heard": {"b"}}, "PeersReachable", "PeerUnreachable", "link probe a b"),
        ({"peers": PeersSeen(0, (B, C)), "peers_heard": {"b"}}, "PeersReachable", "Partitioned", "no other node"),
        ({"peers": PeersSeen(1, (B,))}, "PeersReachable", "PeersAnswer", "is down"),
        ({"peers": None}, "PeersReachable", "NotReported", "update it"),
        ({"clock_skew_s": 3.0}, "ClockRight", "ClockSkewed", "3.0 s ahead"),
        ({"clock_skew_s": -90.0}, "ClockRight", "ClockWrong", "90.0 s behind; set it"),
        ({"certificate_ends_at_s": NOW.timestamp() + 86_400}, "CertificateValid", "CertificateEnding", "--rejoin"),
        ({"certificate_ends_at_s": NOW.timestamp() - 1}, "CertificateValid", "CertificateEnded", "join-token --node a"),
        ({"certificate_ends_at_s": 0.0}, "CertificateValid", "NotReported", "not connected yet"),
        ({"heartbeat_at": None}, "DatabaseCurrent", "NotReported", "no heartbeat"),
        ({"unreconciled_vms": 2}, "DatabaseCurrent", "DatabaseOlder", "has newer records of 2 VMs"),
        ({"unheard": True}, "DatabaseCurrent", "NotHeardSinceRestore", "novacron node remove a --force"),
        ({"ready": False}, "DatabaseCurrent", "HeartbeatsNotStored", "stored at 2027-01-01 00:00 UTC"),
        ({"ready": False}, "DiskUsable", "NodeLost", "systemctl status novacron-agent"),
        ({"ready": False, "peers": PeersSeen(0, (B,)), "peers_heard": {"b"}}, "PeersReachable", "NodeLost", "there"),
    ],
)  # fmt: skip
def test_each_condition_says_what_is_wrong_and_what_to_do(
    changes: dict[str, Any], type: str, reason: str, words: str
) -> None:
    found = {c.type: c for c in evaluate(FINE._replace(**changes), AGENT_SAYS)}[ConditionType(type)]
    assert found.reason == reason and words in found.message, found
    expected = {"NotReported": "unknown", "NodeLost": "unknown", "PeersAnswer": "true"}.get(reason, "false")
    assert found.status == expected


def test_what_an_agent_says_of_conditions_that_are_not_its_own_does_not_count() -> None:
    lies = (reported(ConditionType.CERTIFICATE), reported(ConditionType.CLOCK, R.CLOCK_WRONG), *AGENT_SAYS)
    assert evaluate(FINE._replace(certificate_ends_at_s=1.0), lies)[5].reason is R.CERTIFICATE_ENDED
    assert evaluate(FINE, lies)[2].status is ConditionStatus.TRUE


def test_a_node_that_is_back_does_not_keep_what_was_unknown_while_it_was_lost() -> None:
    lost = dated((), evaluate(FINE._replace(ready=False), AGENT_SAYS), NOW)
    assert evaluate(FINE, lost)[1].reason is R.NOT_REPORTED


def test_since_is_when_the_status_changed_not_the_words() -> None:
    full, later = reported(ConditionType.DISK, R.DISK_FULL), NOW + timedelta(minutes=1)
    first = dated((), [full], NOW)
    nearly = dated(first, [reported(ConditionType.DISK, R.DISK_NEARLY_FULL)], later)
    fine = dated(nearly, [reported(ConditionType.DISK)], later)
    assert (first[0].since, nearly[0].since, fine[0].since) == (NOW, NOW, later)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (None, ("DiskFull", "false"), True),
        (None, ("DiskWritable", "true"), False),
        (("DiskFull", "false"), ("DiskFull", "false"), False),
        (("DiskNearlyFull", "false"), ("DiskFull", "false"), True),
        (("DiskFull", "false"), ("DiskWritable", "true"), True),
        (("DiskFull", "false"), ("NodeLost", "unknown"), False),
        (("NodeLost", "unknown"), ("DiskWritable", "true"), False),
        (("NodeLost", "unknown"), ("DiskFull", "false"), True),
    ],
)
def test_a_change_makes_one_event_and_no_change_none(
    before: tuple[str, str] | None, now: tuple[str, str], told: bool
) -> None:
    earlier = [] if before is None else [condition(ConditionType.DISK, R(before[0]), before[1])]
    assert bool(worth_an_event(earlier, [condition(ConditionType.DISK, R(now[0]), now[1])])) is told


@pytest.mark.parametrize("type", ["CertificateValid", "ClockRight", "DatabaseCurrent"])
def test_what_makes_events_of_another_name_already_makes_no_second_one(type: str) -> None:
    assert not worth_an_event([], [condition(ConditionType(type), R.CLOCK_WRONG)])


TYPES = {R.PARTITIONED: "PeersReachable", R.CERTIFICATE_ENDED: "CertificateValid", R.CLOCK_WRONG: "ClockRight",
         R.MEMORY_PRESSURE: "MemoryAvailable"}  # fmt: skip


@pytest.mark.parametrize("reason", sorted(KEEPS_VMS_AWAY))
def test_a_node_that_should_get_no_vms_gets_none_and_the_vm_says_why(reason: ConditionReason) -> None:
    wrong = condition(ConditionType(TYPES.get(reason, "DiskUsable")), reason)
    bad = node("bad", memory_mib=65536)
    bad = msgspec.structs.replace(bad, status=msgspec.structs.replace(bad.status, conditions=(wrong,)))
    assert Fleet([bad, node("good")], {}).choose(Wish("1", vm())) == "good"
    alone = Fleet([bad], {})
    assert alone.choose(Wish("1", vm())) is None
    assert why_not(alone, Wish("1", vm())) == f"node bad takes nothing new ({reason}): {wrong.message}"


def choose_for_vm(every: list[Node], named: str | None) -> str | None:
    return Fleet([node for node in every if named in (None, node.name)], {}).choose(Wish("1", vm()))


def choose_for_image(every: list[Node], named: str | None) -> str | None:
    return imports.choose_node(every, named)


def choose_for_volume(every: list[Node], named: str | None) -> str | None:
    return volumes.choose_pool(every, volumes.NewVolume("v", "local", 0, named))[0]


def choose_for_replica(every: list[Node], named: str | None) -> str | None:
    followed = Vm(
        "vm-a", "a", vm(), VmStatus(), "elsewhere", 1, None, False, None, None, revision=1, created_at=NOW
    )  # fmt: skip
    return next(
        (node.name for node in every if named in (None, node.name) and not why_no_replica(node, followed)), None
    )


def choose_gateway_of_network(every: list[Node], named: str | None) -> str | None:
    overlay = Overlay("net-a", None, frozenset(("bad", "good")), encrypted=False)
    every = [node for node in every if named in (None, node.name)]
    return gateways.look(every, {node.name for node in every}, Counter()).choose(overlay)


@pytest.mark.parametrize("reason", sorted(KEEPS_VMS_AWAY))
@pytest.mark.parametrize(
    "choose", [choose_for_vm, choose_for_image, choose_for_volume, choose_for_replica, choose_gateway_of_network]
)
def test_whoever_chooses_a_node_leaves_out_one_that_is_not_well(
    choose: Callable[[list[Node], str | None], str | None], reason: ConditionReason
) -> None:
    def able(name: str, *conditions: NodeCondition) -> Node:
        made = node(name, memory_mib=65536)
        assert made.status.inventory is not None
        inventory = msgspec.structs.replace(made.status.inventory, networks=True, dwcp_endpoint="10.0.0.1:7445")
        return msgspec.structs.replace(
            made, status=msgspec.structs.replace(made.status, inventory=inventory, conditions=conditions)
        )

    bad = able("bad", condition(ConditionType(TYPES.get(reason, "DiskUsable")), reason))
    assert choose([able("bad"), able("good")], "bad") == "bad", "while it is well"
    assert choose([bad, able("good")], None) == "good"
    for alone, named in (([bad], None), ([bad, able("good")], "bad")):
        with suppress(NoCapacity):
            assert choose(alone, named) is None


@pytest.mark.parametrize("reason", ["DiskNearlyFull", "PeerUnreachable", "ClockSkewed", "MemoryLow", "NodeLost"])
def test_lesser_troubles_are_shown_and_keep_no_vm_away(reason: str) -> None:
    has = node("a")
    wrong = condition(ConditionType.DISK, R(reason))
    has = msgspec.structs.replace(has, status=msgspec.structs.replace(has.status, conditions=(wrong,)))
    assert Fleet([has], {}).choose(Wish("1", vm())) == "a"


# the agent's looks


@pytest.mark.parametrize(
    ("look", "before", "reason"),
    [
        (DiskLook(50 * GIB, 100 * GIB), R.DISK_WRITABLE, R.DISK_WRITABLE),
        (DiskLook(4 * GIB, 100 * GIB), R.DISK_WRITABLE, R.DISK_NEARLY_FULL),
        (DiskLook(20 * GIB, 1000 * GIB), R.DISK_WRITABLE, R.DISK_WRITABLE),
        (DiskLook(9 * GIB, 1000 * GIB), R.DISK_WRITABLE, R.DISK_NEARLY_FULL),
        (DiskLook(int(5.5 * GIB), 100 * GIB), R.DISK_WRITABLE, R.DISK_WRITABLE),
        (DiskLook(int(5.5 * GIB), 100 * GIB), R.DISK_NEARLY_FULL, R.DISK_NEARLY_FULL),
        (DiskLook(7 * GIB, 100 * GIB), R.DISK_NEARLY_FULL, R.DISK_WRITABLE),
        (DiskLook(8 << 20, 100 * GIB), R.DISK_WRITABLE, R.DISK_FULL),
        (DiskLook(32 << 20, 100 * GIB), R.DISK_FULL, R.DISK_FULL),
        (DiskLook(32 << 20, 100 * GIB), R.DISK_WRITABLE, R.DISK_NEARLY_FULL),
        (DiskLook(8 << 20, 24 << 20), R.DISK_WRITABLE, R.DISK_WRITABLE),
        (DiskLook(5 * GIB, 100 * GIB, OSError(errno.ENOSPC, "No space left on device")), R.DISK_WRITABLE, R.DISK_FULL),
        (DiskLook(0, 0, OSError(errno.EROFS, "Read-only file system")), R.DISK_WRITABLE, R.DISK_READ_ONLY),
        (DiskLook(50 * GIB, 100 * GIB, OSError(errno.EIO, "Input/output error")), R.DISK_WRITABLE, R.DISK_FAILS),
        (DiskLook(0, 0, hangs=True), R.DISK_WRITABLE, R.DISK_HANGS),
    ],
)
def test_a_disk_is_judged_by_a_write_and_its_room(
    look: DiskLook, before: ConditionReason, reason: ConditionReason
) -> None:
    found = judge_disk(look, before, Path("/var/lib/novacron"))
    assert found.reason is reason and "/var/lib/novacron" in found.message
    assert (found.status is ConditionStatus.TRUE) is (reason is R.DISK_WRITABLE)


@pytest.mark.parametrize("boundary", [16 << 20, 5 * GIB])
@given(noise=st.lists(st.integers(-(1 << 20), 1 << 20), min_size=20, max_size=20))
def test_a_disk_whose_room_trembles_around_a_boundary_changes_its_condition_once(
    boundary: int, noise: list[int]
) -> None:
    reason, changes = R.DISK_NEARLY_FULL if boundary < GIB else R.DISK_WRITABLE, 0
    for tremble in noise:
        now = judge_disk(DiskLook(boundary + tremble, 100 * GIB), reason, Path("/")).reason
        changes, reason = changes + (now is not reason), now
    assert changes <= 1


def test_a_real_directory_is_written_to_and_one_that_is_not_there_fails(tmp_path: Path) -> None:
    assert host.look_at_disk(tmp_path).error is None and not list(tmp_path.iterdir())
    failed = judge_disk(host.look_at_disk(tmp_path / "gone"), R.DISK_WRITABLE, tmp_path)
    assert failed.reason is R.DISK_FAILS and "No such file" in failed.message
    assert host.look_at_memory().total_bytes > host.look_at_memory().available_bytes > 0


def test_memory_must_be_short_for_a_while_and_be_back_for_a_while() -> None:
    judge = MemoryJudge()
    looks = [(0, 50, 0.0), (5, 4, 0.0), (10, 50, 0.0), (15, 4, 0.0), (25, 4, 0.0), (30, 4, 0.0), (35, 6, 0.0),
             (40, 50, 50.0), (60, 50, 50.0), (65, 50, 0.0), (75, 50, 0.0), (80, 50, 0.0)]  # fmt: skip
    said = [judge.judge(MemoryLook(available, 100, stalled), now).reason for now, available, stalled in looks]
    assert said == [R.MEMORY_AVAILABLE] * 5 + [R.MEMORY_LOW] * 3 + [R.MEMORY_PRESSURE] * 3 + [R.MEMORY_AVAILABLE]


def test_memory_that_is_short_and_waited_for_keeps_vms_away() -> None:
    judge = MemoryJudge()
    said = [judge.judge(MemoryLook(1, 16_384, 90.0), now).reason for now in (0.0, 30.0)]
    assert said[-1] is R.MEMORY_PRESSURE and R.MEMORY_PRESSURE in KEEPS_VMS_AWAY


async def test_of_several_disks_the_worst_is_said_and_each_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, images, gone_place = tmp_path / "state", tmp_path / "images", tmp_path / "gone"
    for directory in (state, images):
        directory.mkdir()
    assert host.on_different_disks([state, images, gone_place]) == [state]
    assert host.on_different_disks([gone_place, images, state, Path("/proc")]) == [gone_place, images, Path("/proc")]
    free = {state: 50 * GIB, images: 50 * GIB}
    monkeypatch.setattr(host, "on_different_disks", list)
    monkeypatch.setattr(host, "look_at_disk", lambda directory: DiskLook(free[directory], 100 * GIB))
    sent = list[wire.ConditionsFound]()
    watch = HostConditions([state, images], PeersSeen, lambda: TRUSTED, sent.append)
    for room in (50 * GIB, 1 << 20, 50 * GIB):
        free[images] = room
        await watch.look()
    found = [message.conditions[0] for message in sent]
    assert [condition.reason for condition in found] == [R.DISK_WRITABLE, R.DISK_FULL, R.DISK_WRITABLE]
    assert str(images) in found[1].message


def test_another_node_that_writes_to_a_shared_directory_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / host.CHECK_FILE).touch()
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    assert host.look_at_disk(tmp_path).error is None


def gone(reach: PeerReach) -> list[str]:
    return [peer.name for peer in reach.seen().unreachable]


def test_a_peer_is_unreachable_after_a_while_of_silence_and_back_after_steady_answers() -> None:
    reach = PeerReach()
    reach.look({"b": None, "c": None}, 0.0)
    for now in range(3, 3 + int(UNREACHABLE_AFTER_S), 3):
        reach.look({"b": "no answer", "c": None}, now)
        assert not gone(reach)
    reach.look({"b": "no answer", "c": None}, 3 + UNREACHABLE_AFTER_S)
    assert reach.seen() == PeersSeen(1, (UnreachablePeer("b", "no answer"),))
    at = 6 + UNREACHABLE_AFTER_S
    reach.look({"b": None, "c": None}, at)
    reach.look({"b": "again", "c": None}, at + 3)
    reach.look({"b": None, "c": None}, at + 6)
    assert gone(reach) == ["b"]
    reach.look({"b": None, "c": None}, at + 6 + REACHABLE_AFTER_S)
    assert not gone(reach)


@given(answers=st.lists(st.booleans(), max_size=200))
def test_a_link_that_comes_and_goes_changes_little(answers: list[bool]) -> None:
    reach, before, changes = PeerReach(), list[str](), 0
    for round_, answered in enumerate(answers):
        reach.look({"b": None if answered else "no answer"}, round_ * 3.0)
        changes += before != gone(reach)
        before = gone(reach)
    assert changes <= 1 + len(answers) * 3.0 / (UNREACHABLE_AFTER_S + REACHABLE_AFTER_S) * 2


def test_a_pause_does_not_count_as_silence_and_peers_of_others_are_forgotten() -> None:
    reach = PeerReach()
    reach.look({"b": "no answer"}, 0.0)
    reach.look({"b": "no answer"}, 100.0)
    assert not gone(reach)
    for now in range(103, 140, 3):
        reach.look({"b": "no answer"}, now)
    assert gone(reach) == ["b"]
    reach.look({"c": None}, 141.0)
    assert reach.seen() == PeersSeen(1)


async def test_an_agent_reports_what_changes_once_and_everything_on_a_new_link(tmp_path: Path) -> None:
    sent, peers = list[wire.ConditionsFound](), [PeersSeen(1)]
    watch = HostConditions([tmp_path], lambda: peers[0], lambda: TRUSTED, sent.append)
    await watch.look()
    await watch.look()
    assert len(sent) == 1
    assert [c.type for c in sent[0].conditions] == [ConditionType.DISK, ConditionType.MEMORY, ConditionType.OVERLAY]
    peers[0] = PeersSeen(0, (B,))
    await watch.look()
    assert len(sent) == 2 and sent[1].peers == peers[0]
    watch.resync()
    await watch.look()
    assert sent[2] == sent[1]


async def test_who_sends_foreign_frames_is_said_as_it_is_now(tmp_path: Path) -> None:
    sent, senders = list[wire.ConditionsFound](), ["203.0.113.2"]

    def overlay() -> ReportedCondition:
        return ReportedCondition(ConditionType.OVERLAY, ConditionStatus.FALSE, R.FOREIGN_FRAMES, " ".join(senders))

    watch = HostConditions([tmp_path], PeersSeen, overlay, sent.append)
    await watch.look()
    senders.append("203.0.113.9")
    await watch.look()
    assert [message.conditions[-1].message for message in sent] == ["203.0.113.2", "203.0.113.2 203.0.113.9"]


async def test_a_disk_that_hangs_is_said_to_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "DISK_S_MAX", 0.05)
    hanging = asyncio.get_running_loop().create_future()
    sent = list[wire.ConditionsFound]()
    watch = HostConditions([tmp_path], PeersSeen, lambda: TRUSTED, sent.append)
    watch._disks[0]._looking = hanging
    await watch.look()
    hanging.set_result(DiskLook(50 * GIB, 100 * GIB))
    await watch.look()
    assert [message.conditions[0].reason for message in sent] == [R.DISK_HANGS, R.DISK_WRITABLE]


def test_the_doctor_tells_of_conditions_with_the_advice() -> None:
    status = {"conditions": [
        msgspec.to_builtins(c) for c in (
            condition(ConditionType.PEERS, R.PARTITIONED), condition(ConditionType.DISK, R.DISK_NEARLY_FULL),
            condition(ConditionType.MEMORY, R.MEMORY_AVAILABLE, "true"), condition(ConditionType.CLOCK, R.CLOCK_WRONG),
        )
    ]}  # fmt: skip
    told = list(running._conditions({"name": "a", "status": status}))
    assert [(finding.grade, finding.advice) for finding in told] == [
        (Grade.BAD, "what to do"), (Grade.WARNING, "what to do"),
    ]  # fmt: skip
    assert told[0].found == "Partitioned in words: no VMs are placed there"
