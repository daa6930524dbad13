# Made of aio/nodes.py by script/generate: change that, and run it.
"""Calls about nodes, the links between sites, and the control plane itself."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.client import protocol
from novacron.client.protocol import Object, quoted
from novacron.client.sync.connection import Connection


class NodeCalls(Connection):
    """Nodes, links between sites, rebalancing, and what the server says of itself."""

    def configure_node(self, name: str, **changes: object) -> Object:
        """Change a node; fields as in ``PATCH /api/v1/nodes/{name}``; None removes a limit."""
        return self._object("PATCH", f"/api/v1/nodes/{quoted(name)}", changes)

    def rename_node(self, name: str, new: str) -> Object:
        """Rename a node; its agent takes the new name over by itself."""
        return self.act("nodes", name, "rename", {"name": new})

    def remove_node(self, name: str, force: bool = False, confirm: str | None = None) -> None:
        """Remove an empty node. With ``force``: one that is gone for good, with what only it had; unless it was fenced,
        ``confirm`` is its name, as a word that its host is off."""
        query = protocol.query({"force": "true", **({"confirm": confirm} if confirm else {})}) if force else ""
        self.request("DELETE", f"/api/v1/nodes/{quoted(name)}" + (f"?{query}" if query else ""))

    def join_token(self, node: str, ttl_s: int = 3600, accept: bool = False) -> str:
        """Return a one-time token with which a host joins as this node, and with ``accept`` is accepted at once."""
        body = {"node": node, "ttl_s": ttl_s, "accept": accept}
        return str((self._object("POST", "/api/v1/nodes/join-tokens", body))["token"])

    def configure_site(self, site: str, *, forward_ports: str) -> Object:
        """Set which ports of a site's gateways may be forwarded to VMs, such as ``30000-32767``."""
        return self._object("PATCH", f"/api/v1/sites/{quoted(site)}", {"forward_ports": forward_ports})

    def limit_link(self, site: str, other_site: str, rate_bytes_per_s: int, schedule: Sequence[Object] = ()) -> Object:
        """Limit what migrations between two sites may use together; fields as in ``PUT /api/v1/links``."""
        body = {"rate_bytes_per_s": rate_bytes_per_s, "schedule": list(schedule)}
        return self._object("PUT", f"/api/v1/links/{quoted(site)}/{quoted(other_site)}", body)

    def unlimit_link(self, site: str, other_site: str) -> None:
        """Remove the limit of a link between two sites."""
        self.request("DELETE", f"/api/v1/links/{quoted(site)}/{quoted(other_site)}")

    def record_drill(self, run: Object) -> Object:
        """Record how a run of a drill went; fields as in ``POST /api/v1/drills``."""
        return self._object("POST", "/api/v1/drills", run)

    def drill_calendar(self) -> list[Object]:
        """Return all drills, each with its last run and whether it is overdue."""
        answered = self._object("GET", "/api/v1/drills/calendar")
        return list(answered["items"])

    def probe_link(self, source: str, target: str, seconds: float = 3.0) -> Object:
        """Measure the path from one node to another, while data flows for ``seconds``."""
        body = {"source": source, "target": target, "seconds": seconds}
        return self._object("POST", "/api/v1/links/actions/probe", body)

    def rebalancing(self) -> Object:
        """Return how the fleet is rebalanced, and the last decision."""
        return self._object("GET", "/api/v1/rebalancing")

    def configure_rebalancing(self, **settings: object) -> Object:
        """Set how the fleet is rebalanced: ``mode``, ``imbalance_min``, ``rounds``, ``cool_down_s`` and others."""
        return self._object("PUT", "/api/v1/rebalancing", settings)

    def forecast_accuracy(self, days: int = 7) -> list[Object]:
        """Return how the forecasts of the last days compare with what came. The forecasts themselves are lists:
        ``forecasts/nodes``, ``forecasts/vms`` and ``capacity``."""
        answered = self._object("GET", f"/api/v1/forecasts/accuracy?{protocol.query({'days': str(days)})}")
        items: list[Object] = answered["items"]
        return items

    def metrics(self, node: str | None = None) -> str:
        """Return the metrics of the server, or of a node's agent, in Prometheus' text format.

        Raises ApiError, Unreachable.
        """
        path = "/metrics" if node is None else f"/api/v1/nodes/{quoted(node)}/metrics"
        return (self.fetch(path)).decode()

    def ready(self) -> tuple[bool, str]:
        """Return whether the server can serve everything, and if not, why. Raises Unreachable."""
        answer = self._transport.send("GET", "/readyz", {}, timeout_s=protocol.PROBE_TIMEOUT_S)
        said = answer.body.decode(errors="replace").strip()
        return answer.status == 200 and said == "ok", said

    def log_level(self) -> str:
        """Return the server's log level."""
        return str((self._object("GET", "/api/v1/log-level"))["level"])

    def set_log_level(self, level: str, node: str | None = None) -> None:
        """Set the log level of the server, or of a node's agent, until it ends."""
        of_node = "" if node is None else f"/nodes/{quoted(node)}"
        self.request("PUT", f"/api/v1{of_node}/log-level", {"level": level})
