"""Changes of part of what the API replaces as a whole lose nothing that somebody else changes meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import typer

from novacron.cli import updates, vm_cds
from novacron.cli.output import Object
from novacron.client import ApiError, Client


class Server:
    """Has one VM, and refuses changes of an earlier revision than the last, as the API does."""

    def __init__(self, *meanwhile: Object) -> None:
        self.vm: Object = {"name": "web", "revision": 1, "spec": {"cdroms": [{"iso": "a"}, {"iso": "b"}]}}
        self._meanwhile = list(meanwhile)

    def get(self, kind: str, ref: str) -> Object:
        found = copy.deepcopy(self.vm)
        if self._meanwhile:
            self._change(self._meanwhile.pop(0))
        return found

    def request(self, method: str, path: str, body: Object, raw: None, *, If_Match: str) -> Object:
        assert (method, path) == ("PATCH", "/api/v1/vms/web")
        if If_Match != f'"{self.vm["revision"]}"':
            raise ApiError({"status": 412, "code": "stale-revision"})
        self._change(body)
        return self.vm

    def _change(self, fields: Object) -> None:
        self.vm["spec"] |= fields
        self.vm["revision"] += 1


def change(server: Server, changes_of: Callable[[Object], Object]) -> Object:
    return updates.update(cast(Client, server), "vms", "web", changes_of)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("novacron.cli.updates.time.sleep", pauses.append)
    return pauses


def test_two_who_change_a_drive_each_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({"cdroms": [{"iso": "a"}, {"iso": "c"}]})
    monkeypatch.setattr(vm_cds, "Client", lambda: server)
    vm_cds.eject("web")
    assert server.vm["spec"]["cdroms"] == [{"iso": None}, {"iso": "c"}]
    vm_cds.insert("web", "d", drive=2)
    assert server.vm["spec"]["cdroms"] == [{"iso": None}, {"iso": "d"}]
    with pytest.raises(typer.Exit):
        vm_cds.insert("web", "d", drive=3)


def test_a_change_that_others_overtake_again_and_again_is_given_up(at_once: list[float]) -> None:
    busy = Server(*({"cdroms": []} for _ in range(updates.ATTEMPTS_MAX)))
    with pytest.raises(ApiError) as refused:
        change(busy, lambda now: {"vcpus": 2})
    assert refused.value.status == 412 and len(at_once) == updates.ATTEMPTS_MAX - 1
    assert "vcpus" not in busy.vm["spec"]


def test_another_refusal_is_not_tried_again() -> None:
    made: list[Any] = []

    def refuse(now: Object) -> Object:
        made.append(now)
        raise ApiError({"status": 409})

    with pytest.raises(ApiError):
        change(Server(), refuse)
    assert len(made) == 1
