"""Measures the path to another node, with a DWCP session of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from pathlib import Path

from novacron import pki
from novacron.agent.host.endpoint import parse_endpoint
from novacron.dwcp.compression import LIGHT
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener
from novacron.dwcp.pipes import PIECE_BYTES, OpaqueSplitter
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.model.probe import PathMeasured
from novacron.wire.probes import ProbeWanted

NOISE_BYTES = 8 << 20
READY_S_MAX, SLACK_S = 15.0, 10.0
LOOK_S = 0.1


class ProbeFailed(Exception):
    """The path could not be measured: says why."""


class _Noise:
    """Random data without end; the same again after ``NOISE_BYTES``, far beyond any window of a compressor's."""

    def __init__(self) -> None:
        self.piece_bytes = PIECE_BYTES
        self._noise = memoryview(os.urandom(NOISE_BYTES))
        self._at = 0
        self._over = False

    def read(self) -> bytes:
        if self._over:
            return b""
        self._at = (self._at + PIECE_BYTES) % NOISE_BYTES
        return bytes(self._noise[self._at : self._at + PIECE_BYTES])

    def abort(self) -> None:
        self._over = True


class _Nowhere:
    def write(self, data: bytes) -> None:
        pass

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _key(probe: str) -> bytes:
    """Return what both ends need to have in common; nothing of a project's goes over this session."""
    return hashlib.sha256(probe.encode()).digest()


async def receive(listener: Listener, probe: str, peer: str, rings_dir: Path, seconds: float) -> None:
    """Take what ``peer`` sends for this probe, and forget it."""
    terms = ReceiveOptions(_key(probe), rings_dir, outage_s=SLACK_S)
    # The sender leaves when it knows enough.
    with listener.expect(probe, peer, terms) as session, contextlib.suppress(ReceiveFailed, TimeoutError):
        async with asyncio.timeout(READY_S_MAX + seconds + SLACK_S):
            await session.receive(_Nowhere())


async def measure(pool: ConnectionPool, request: ProbeWanted, source: str, rings_dir: Path) -> PathMeasured:
    """Send to the node that the request names, which must expect the probe. Raises ProbeFailed."""
    options = SendOptions(
        _key(request.probe), rings_dir, outage_s=SLACK_S, method=LIGHT, rate_bytes_per_s=request.rate_bytes_per_s
    )
    sender = Sender(parse_endpoint(request.endpoint), pki.node_host(request.peer), request.probe, pool, options)
    opening = time.monotonic()
    try:
        async with asyncio.timeout(READY_S_MAX):
            await sender.__aenter__()
        started = time.monotonic()
        sending = asyncio.create_task(sender.send(_Noise(), OpaqueSplitter()))
        rtts: list[float] = []
        try:
            while time.monotonic() - started < request.seconds:
                await asyncio.wait({sending}, timeout=LOOK_S)
                if sending.done():
                    sending.result()
                rtts.append(sender.counters.rtt_ms)
            passed = time.monotonic() - started
            counters, best = sender.counters, sender.rate_bytes_per_s
            delivered, shortest_s = counters.delivered_bytes, sender.path_s[1]
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await sender.__aexit__(ProbeFailed)
    except (SendFailed, TimeoutError, OSError) as error:
        raise ProbeFailed(str(error) or f"no answer within {READY_S_MAX:.0f} s") from error
    return PathMeasured(
        source=source,
        target=request.peer,
        seconds=round(passed, 3),
        delivered_bytes=delivered,
        rate_bytes_per_s=round(delivered / passed),
        best_rate_bytes_per_s=round(best),
        open_ms=round((started - opening) * 1e3, 1),
        rtt_ms=round(shortest_s * 1e3, 2),
        loaded_rtt_ms=sorted(rtts)[len(rtts) // 2],
        retransmits=counters.retransmits,
        streams=counters.streams,
    )
