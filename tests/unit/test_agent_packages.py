"""Packages of agents in a rollout: which files a version is, and how they come to hosts and are installed there."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.rollout.agents.hosts import ReachedHosts
from novacron.rollout.agents.packages import PackageFiles, agent_version
from novacron.rollout.model import StepFailed
from tests.support.upgraded_nodes import packages


def test_packages_are_found_by_version_and_release(tmp_path: Path) -> None:
    files = PackageFiles(packages(tmp_path / "p", "1.0.0-1+deb12", "1.0.0-2+deb12", "1.1.0-1+deb12"))
    assert [file.name for file in files.of("1.1.0", "12")] == [
        "novacron_1.1.0-1+deb12_amd64.deb", "novacron-agent_1.1.0-1+deb12_amd64.deb",
    ]  # fmt: skip
    assert files.of("1.0.0-2", "12") == files.of("1.0.0-2+deb12", "12")
    with pytest.raises(StepFailed, match=r"1.0.0-1.* or .*1.0.0-2.*write its revision"):
        files.of("1.0.0", "12")
    with pytest.raises(StepFailed, match=r"no novacron of version 1\.1\.0 for Debian 13"):
        files.of("1.1.0", "13")
    assert agent_version("1.1.0-2+deb13") == "1.1.0" and agent_version("1.1.0") == "1.1.0"


def _reached(directory: Path, body: str) -> ReachedHosts:
    program = directory / "reach"
    program.write_text(f'#!/bin/sh\nnode=$1; shift\necho "$node $*" >> {directory}/log\n{body}\n')
    program.chmod(0o755)
    return ReachedHosts(f"{program} {{node}}", 20)


def test_commands_reach_hosts_as_separate_words_and_packages_arrive_whole(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    hosts = _reached(tmp_path, f'cd {there} && case $1 in dd) cat > part;; mv) mv part whole;; mkdir) ;; sha256sum)'
                               " [ -f whole ] && sha256sum whole || sha256sum part;; esac")  # fmt: skip
    file = tmp_path / "novacron-agent_1.1.0-1+deb12_amd64.deb"
    file.write_bytes(b"package" * 1000)
    hosts.bring("n01", [file])
    assert (there / "whole").read_bytes() == file.read_bytes()
    before = (tmp_path / "log").read_text()
    hosts.bring("n01", [file])
    assert " dd of=" in before and (tmp_path / "log").read_text().count(" dd of=") == 1, "it is there already"
    assert all(line.startswith("n01 ") for line in before.splitlines())


def test_a_package_that_arrives_in_part_is_not_kept(tmp_path: Path) -> None:
    hosts = _reached(tmp_path, "case $1 in sha256sum) echo 00;; esac")
    file = tmp_path / "novacron_1.1.0-1_amd64.deb"
    file.write_bytes(b"package")
    with pytest.raises(StepFailed, match="is not what was sent: is its disk full"):
        hosts.bring("n01", [file])
    assert " mv " not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Status: install ok installed\nVersion: 1.0.0-1\n", "1.0.0-1"),
        ("Status: install ok half-configured\nVersion: 1.0.0-1\n", ""),
    ],
)
def test_a_package_that_is_half_installed_counts_as_none(tmp_path: Path, said: str, found: str) -> None:
    assert _reached(tmp_path, f"printf '{said}'").installed("n01") == found


@pytest.mark.parametrize("node", ["-oProxyCommand=x", "a b", "$(id)", "a;b", ""])
def test_no_name_reaches_a_shell(tmp_path: Path, node: str) -> None:
    with pytest.raises(StepFailed, match="characters that a shell could change"):
        _reached(tmp_path, "").debian(node)
    assert not (tmp_path / "log").exists()


def test_a_command_that_hangs_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="n01: cat /etc/debian_version ended with 3: no such host"):
        _reached(tmp_path, "echo no such host >&2; exit 3").debian("n01")
    with pytest.raises(StepFailed, match="which is no release of Debian"):
        _reached(tmp_path, "echo trixie/sid").debian("n01")
    with pytest.raises(StepFailed, match="reach: can't run /nonexistent"):
        ReachedHosts("/nonexistent {node}", 10).debian("n01")
