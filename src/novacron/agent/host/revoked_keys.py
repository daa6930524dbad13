"""Keys of other hosts that are no nodes': kept, so that an agent that restarts without the server refuses them, too.

Without a list that can be read, it refuses every host until the server has sent one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from novacron import private_file
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.backoff import Backoff
from novacron.model.errors import MALFORMED
from novacron.telemetry import logs

log = logs.get(__name__)

RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0
"""Between attempts to store the list, on a full disk for example."""


class RevokedKeys:
    """The list that the server told last."""

    def __init__(self, path: Path, admittance: Admittance) -> None:
        self._path = path
        self.admittance = admittance
        self._unstored: tuple[str, ...] | None = None
        """What the disk does not have yet; None: it has the list that the server told last."""
        self._told = asyncio.Event()
        try:
            admittance.revoke(msgspec.json.decode(path.read_bytes(), type=tuple[str, ...]))
        except FileNotFoundError:  # the server has not sent it yet
            admittance.close()
        except (OSError, *MALFORMED) as error:
            log.error(
                "the list of revoked keys can't be read: other nodes are refused until the server sends it again",
                path=str(path), error=str(error),
            )  # fmt: skip
            admittance.close()

    def tell(self, keys: Sequence[str]) -> None:
        """Refuse these keys from now on, and cut the connections of their hosts; ``run`` stores the list."""
        self.admittance.revoke(keys)
        self._unstored = tuple(keys)
        self._told.set()

    async def run(self) -> None:
        """Store what was told, beside the loop on which the lease's heartbeats run, until cancelled."""
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            await self._told.wait()
            self._told.clear()
            while self._unstored is not None:
                keys = self._unstored
                try:
                    await asyncio.to_thread(private_file.write, self._path, msgspec.json.encode(keys))
                except OSError as error:  # until then a new agent has to wait for the server to hear of them
                    log.warning("the list of revoked keys can't be stored", error=str(error))
                    await asyncio.sleep(backoff.next_s())
                    continue
                backoff.reset()
                if self._unstored is keys:
                    self._unstored = None
