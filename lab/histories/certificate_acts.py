"""Acts with certificates that end."""

from __future__ import annotations

import contextlib
import time

from lab.histories.scene import Scene
from novacron import pki
from novacron.agent import identity as identities
from novacron.model.errors import NovaError
from novacron.model.token import decode_ticket


class CertificateActs(Scene):
    """Each returns what was done, for whoever reads of a violation."""

    def _ends_certificate(self) -> str:
        """A node's certificate has ended; perhaps its agent is started again, or else only notices when it connects."""
        node, again = self._a_node(), self.random.random() < 0.6
        identity = identities.load(self._state(node) / "identity")
        if identity is None:
            return f"of {node}, which has none"
        month_ago = pki.Authority.open(self.platform.directory / "s" / "server", _month_ago_s)
        pki.write_secret(identity.certificate, month_ago.issue_node(identity.request(identity.name), identity.name))
        if again:
            self.platform.agents[node].kill()
            self.platform.agents[node].start()
        return f"of {node}" + (", whose agent starts again" if again else "")

    def _rejoins(self) -> str:
        """A node gets another certificate, whatever its present one is."""
        node = self._a_node()
        identity = identities.load(self._state(node) / "identity")
        token = self._ask(lambda: self.platform.client.join_token(node))
        if identity is None or token is None:
            return f"nothing: {node} has no certificate, or nobody is there to give one"
        with contextlib.suppress(NovaError):  # another key has its place
            identities.rejoin(identity.directory, decode_ticket(token))
        return f"of {node}"


def _month_ago_s() -> float:
    return time.time() - (pki.NODE_DAYS + 1) * 86_400.0
