"""What nodes ask each other: the answers are the product's, the connections are simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from novacron.dwcp.frames import Frame, FrameType
from novacron.model.lease import ANSWER_S_MAX

if TYPE_CHECKING:
    from tests.simulation.world import World


class PeerConnection:
    """One node asks another one."""

    def __init__(self, world: World, source: str, target: str) -> None:
        self._world, self._source, self._target = world, source, target

    def put(self, frame: Frame) -> None:
        assert frame.type is FrameType.VITALS

    async def read(self) -> Frame:
        there_s, back_s = self._world.delay_s(), self._world.delay_s()
        if there_s + back_s > ANSWER_S_MAX:  # the time limit is of the real clock, which stands still here
            await self._world.clock.sleep_until(self._world.clock.now_s + ANSWER_S_MAX)
            raise TimeoutError
        await self._carry(self._source, self._target, there_s)
        if not self._world.hosts[self._target].works:
            raise ConnectionRefusedError
        answer = msgspec.msgpack.encode(self._world.hosts[self._target].agent.peers.vitals())
        await self._carry(self._target, self._source, back_s)
        return Frame(FrameType.VITALS, payload=answer)

    async def _carry(self, source: str, target: str, seconds: float) -> None:
        await self._world.clock.sleep_until(self._world.clock.now_s + seconds)
        if not self._world.is_up(source, target):
            raise ConnectionResetError("the path between the nodes is cut")

    def abort(self) -> None: ...


class SimulatedPool:
    """Stands in for ``novacron.dwcp.connection.ConnectionPool``."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    async def take(self, endpoint: tuple[str, int], peer_host: str) -> PeerConnection:
        return PeerConnection(self._world, self._name, peer_host.partition(".")[0])

    def give(self, endpoint: tuple[str, int], peer_host: str, connection: PeerConnection) -> None: ...
