"""What guests, QEMU and peers say that nobody expects."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from novacron.agent.control.peers import PeerWatch
from novacron.agent.host.clock import SystemClock
from novacron.agent.host.lease import NodeLease
from novacron.agent.migration.target import MigrationTarget
from novacron.disk.images import scan
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.frames import Frame, FrameType
from novacron.model.migration import Side
from novacron.qemu.guest import GuestAgent, GuestSilent
from novacron.qemu.monitor import Monitor
from novacron.wire import messages as wire
from tests.waiting import eventually


async def hostile_guest_agent(path: Path, answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).lstrip(b"\xff"):
            if not line.strip():
                continue
            question = json.loads(line)
            if question["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": question["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(answer + b"\n")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, path)


async def test_a_guests_addresses_are_addresses(tmp_path: Path) -> None:
    """The scope of an address (RFC 4007) may be any text, and of any length."""
    scopes = ["\0\x1b[2Jpwned", "A" * 500_000, "eth0"]
    entries = [{"ip-address-type": "ipv6", "ip-address": f"2001:db8::{n}%{s}"} for n, s in enumerate(scopes, 1)]
    answer = json.dumps({"return": [{"name": "eth0", "ip-addresses": entries}]}).encode()
    server = await hostile_guest_agent(tmp_path / "ga", answer)
    try:
        assert await GuestAgent(tmp_path / "ga").addresses() == ("2001:db8::1", "2001:db8::2", "2001:db8::3")
    finally:
        server.close()


@pytest.mark.parametrize("answer", [b'{"return": {"host-name": "\xff"}}', b'{"return": ' + b"[" * 20_000])
async def test_what_is_no_text_is_no_answer_of_a_guest(tmp_path: Path, answer: bytes) -> None:
    server = await hostile_guest_agent(tmp_path / "ga", answer)
    try:
        with pytest.raises(GuestSilent):
            await GuestAgent(tmp_path / "ga").name()
    finally:
        server.close()


@pytest.mark.parametrize("returned", [{"size": 1 << 80}, {"size": -1}, {"size": "1"}, [], [{"online": 1}], 7])
async def test_what_is_no_size_is_no_memory_of_a_guest(tmp_path: Path, returned: object) -> None:
    server = await hostile_guest_agent(tmp_path / "ga", json.dumps({"return": returned}).encode())
    try:
        with pytest.raises(GuestSilent):
            await GuestAgent(tmp_path / "ga").memory_mib()
    finally:
        server.close()


async def test_an_event_of_qemu_that_cannot_be_taken_does_not_hide_the_next() -> None:
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def listen() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await events.get()

    taken: list[str] = []

    def take(name: str, data: dict[str, Any]) -> None:
        taken.append(name)
        if name == "MIGRATION":
            str(data["status"])

    async def disconnect() -> None: ...

    monitor = Monitor(cast(Any, SimpleNamespace(events=listen(), disconnect=disconnect)), take)
    for name in ("STOP", "MIGRATION", "RESUME"):
        events.put_nowait({"event": name})
    await eventually(lambda: taken == ["STOP", "MIGRATION", "RESUME"], "all are taken")
    await monitor.close()


class Pool:
    """Every node answers; one with what is nested too deeply."""

    async def take(self, endpoint: object, host: str) -> Any:
        payload = b"\x81\xa1x" + b"\x91" * 200_000 if "deep" in host else msgspec.msgpack.encode({"silent": True})

        async def read() -> Frame:
            return Frame(FrameType.VITALS, payload=payload)

        return SimpleNamespace(put=lambda _: None, abort=lambda: None, read=read)

    def give(self, *_: object) -> None: ...


def watch_in(directory: Path) -> PeerWatch:
    return PeerWatch(
        directory / "peers.json", "me", cast(ConnectionPool, Pool()), NodeLease(directory / "lease"), SystemClock(),
        lambda: None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [("bad", "nonsense"), ("bad", ""), ("bad", "host:99999999"), ("bad\0", "127.0.0.1:1"), ("b" * 300, "127.0.0.1:1"),
     ("", "127.0.0.1:1"), ("deep", "127.0.0.1:1")],
    ids=range(7),
)  # fmt: skip
async def test_one_peer_does_not_keep_the_others_from_being_heard(tmp_path: Path, name: str, endpoint: str) -> None:
    watch = watch_in(tmp_path)
    answers = await watch._ask_all((wire.Peer("good", "127.0.0.1:1"), wire.Peer(name, endpoint)))
    assert "good" in answers


def test_a_damaged_list_of_peers_does_not_stop_the_agent(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_bytes(b'{"voters":[{"name":"\xff","endpoint":"x"}],"watched":[]}')
    watch_in(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [b'{"kind":"disk","description":"\xff"}', b'{"a":' * 100_000,
     json.dumps({"kind": "disk", "disk": {"path": "a\0b", "sha256": "x", "size_bytes": 4096}}).encode()],
    ids=["no UTF-8", "nested too deeply", "NUL in a path"],
)  # fmt: skip
def test_a_damaged_manifest_is_one_images_matter(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_bytes(manifest)
    images, errors = scan(tmp_path)
    assert images == {} and len(errors) == 1 and errors[0].startswith("image bad: ")


@pytest.mark.parametrize("warm", [None, "nonsense"])
async def test_nothing_ends_a_guest_after_its_target_has_voted(
    monkeypatch: pytest.MonkeyPatch, warm: str | None
) -> None:
    """From then on it may be the only one."""
    sent: list[wire.Message] = []
    destroyed: list[str] = []

    async def destroy() -> None:
        destroyed.append("destroyed")

    async def forget(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def store(**_: object) -> None: ...

    services = SimpleNamespace(
        listener=SimpleNamespace(announce=lambda *_: contextlib.nullcontext()), pages=SimpleNamespace(forget=forget),
        connections=SimpleNamespace(warm=lambda *_: None), run_in_background=lambda work: work.close(),
        send=sent.append, endpoint="x", clock=None,
    )  # fmt: skip
    context = SimpleNamespace(
        vm="vm-1", services=services, machine=SimpleNamespace(destroy=destroy), record=SimpleNamespace(post_copy=None),
        exit_expected=False, store=store, owns=lambda: True, arrived_by=None, wake=lambda: None,
    )  # fmt: skip
    target = MigrationTarget(cast(Any, context), cast(Any, services), destroy)
    task = wire.Task("mig-1", Side.TARGET, cast(Any, "live"), "source", 2, None, warm)

    assignment = cast(Any, SimpleNamespace(
        project="p", page_key=b"k" * 32, other_page_keys=(), volumes=(), spec=SimpleNamespace(encryption_key="")
    ))  # fmt: skip

    async def load_all(*_: object) -> None:
        await target._loaded(task, False)

    monkeypatch.setattr(target, "_load_all", load_all)
    await target._load(task, assignment, cast(Any, None))
    assert [type(message) for message in sent] == [wire.Voted] and destroyed == []
