"""Keys of other hosts that are no nodes': kept, so that an agent that restarts without the server refuses them, too.

Without a list that can be read, it refuses every host until the server has sent one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from novacron import private_file
from novacron.dwcp.admittance import Admittance
from novacron.model.errors import MALFORMED
from novacron.telemetry import logs

log = logs.get(__name__)


class RevokedKeys:
    """The list that the server told last."""

    def __init__(self, path: Path, admittance: Admittance) -> None:
        self._path = path
        self.admittance = admittance
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
        """Refuse these keys from now on, and cut the connections of their hosts."""
        self.admittance.revoke(keys)
        try:
            private_file.write(self._path, msgspec.json.encode(tuple(keys)))
        except OSError as error:  # a new agent has to wait for the server to hear of them
            log.warning("the list of revoked keys can't be stored", error=str(error))
