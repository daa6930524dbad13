"""``novacron rebalance``, also with a server one version back."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from novacron.cli import app, rebalance
from novacron.cli.output import Object

OLDER: Object = {
    "settings": {
        "mode": "auto", "imbalance_min": 0.04, "rounds": 3, "gain_min": 0.003, "cost_per_s": 0.0001,
        "cool_down_s": 43200, "concurrency": 4,
    },
    "rounds": 1, "decided_at": None, "decision": {"imbalance": 0.0512, "rounds": 1, "moves": [], "why": "uneven"},
}  # fmt: skip
"""What a server says that knows nothing of forecasts."""


class OlderServer:
    def __init__(self) -> None:
        self.sent: Object = {}

    def rebalancing(self) -> Object:
        return OLDER

    def configure_rebalancing(self, **fields: Any) -> Object:
        self.sent = fields
        return {**OLDER, "settings": fields}


def test_an_older_server_is_shown_and_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OlderServer()
    monkeypatch.setattr(rebalance, "Client", lambda: server)
    shown = CliRunner().invoke(app.app, ["rebalance", "show"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "0.04, for 3 rounds" in shown.output and "average" in shown.output and "0.051" in shown.output
    changed = CliRunner().invoke(app.app, ["rebalance", "set", "--concurrency", "2"], catch_exceptions=False)
    assert changed.exit_code == 0
    assert server.sent == {**OLDER["settings"], "concurrency": 2}, "nothing that it would refuse is sent"
