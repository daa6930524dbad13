"""The smoke test of a rollout, against a server that has nodes: it makes a real VM, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.platform import Platform
from novacron import __version__
from novacron.client import Client
from novacron.rollout.model import StepFailed
from novacron.rollout.probes import SmokeTest, why_not_ready

NAME = "rollout-smoke-7"


def smoke(site: Platform, tmp_path: Path) -> SmokeTest:
    config = site.client.config
    (tmp_path / "ca.crt").write_text(config.ca)
    assert why_not_ready(config.url, tmp_path / "ca.crt") == ""
    return SmokeTest(config.url, config.token, tmp_path / "ca.crt", NAME)


def leftovers(site: Platform) -> list[str]:
    return [
        found["name"]
        for kind in ("projects", "vms", "networks")
        for found in site.client.list(kind)
        if found["name"] == NAME
    ]


def test_a_vm_is_made_and_deleted_and_what_an_earlier_attempt_left_is_removed(site: Platform, tmp_path: Path) -> None:
    site.client.create_project(NAME)
    inside = Client(site.client.config._replace(project=NAME))
    inside.create_network(NAME)
    inside.create_vm(name=NAME, image="tiny", vcpus=1, memory_mib=128, nics=[{"network": NAME}], power="stopped")
    assert "a VM was made, ran and was deleted" in smoke(site, tmp_path).run(__version__, "tiny")
    assert not leftovers(site)


def test_a_server_of_another_version_is_refused(site: Platform, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"instead of 9\.9"):
        smoke(site, tmp_path).run("9.9", "tiny")
    assert not leftovers(site)


def test_a_token_that_may_not_is_said(site: Platform, tmp_path: Path) -> None:
    wrong = smoke(site, tmp_path)
    wrong._token = "ncp_" + "x" * 40
    with pytest.raises(StepFailed, match="smoke test at https://"):
        wrong.run(__version__, "tiny")
