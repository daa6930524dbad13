"""Messages under way between the server and the agents: lost, repeated, delayed and reordered as the test chooses."""

from __future__ import annotations

from novacron.wire import messages as wire

MESSAGES_MAX = 40


class SimulatedNetwork:
    """Two bags of messages; what is never taken from them is lost."""

    def __init__(self) -> None:
        self.for_hosts: list[tuple[str, wire.Message]] = []
        self.for_server: list[tuple[str, wire.Message]] = []

    def to_host(self, host: str, message: wire.Message) -> None:
        self.for_hosts.append((host, message))
        del self.for_hosts[:-MESSAGES_MAX]

    def to_server(self, host: str, message: wire.Message) -> None:
        if isinstance(message, wire.Observed) and any(sent == (host, message) for sent in self.for_server):
            return
        self.for_server.append((host, message))
        del self.for_server[:-MESSAGES_MAX]

    def lose_everything(self) -> None:
        self.for_hosts.clear()
        self.for_server.clear()
