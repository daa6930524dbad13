"""``novacron doctor`` finds what is wrong and says what to do; ``novacron support-bundle`` holds what helps, and no
secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron import pki
from novacron.local import bundle
from novacron.local.doctor import finding, key_files, machine, running
from novacron.local.doctor.finding import Grade
from novacron.model.condition import KEEPS_VMS_AWAY, ConditionType
from tests.integration.conftest import Api

NEVER = ("nva_", "nvj_", "PRIVATE KEY", "sesame")


def doctor(*arguments: str, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the command's status and its findings."""
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "doctor", "-o", "json", *arguments], capture_output=True, text=True,
        timeout=120, env={**os.environ, **environment, "PYTHONASYNCIODEBUG": ""},
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    return done.returncode, json.loads(done.stdout)


def about(findings: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [finding for finding in findings if finding["about"] == what]


def _fine(node: dict[str, Any]) -> bool:
    """Say whether all conditions of a node are known, and none keeps VMs away."""
    conditions = node["status"]["conditions"]
    known = len(conditions) == len(ConditionType) and all(c["status"] != "unknown" for c in conditions)
    return known and not any(c["reason"] in KEEPS_VMS_AWAY for c in conditions)


def test_a_healthy_platform_passes_the_doctor(site: Platform) -> None:
    until(
        lambda: all(_fine(node) for node in site.client.list("nodes")), "the agents have reported their conditions", 60
    )
    status, findings = doctor("--state-dir", str(site.directory / "s"), "--database", site.postgres.url,
                           NOVACRON_CONFIG=str(site.config))  # fmt: skip
    for what in ("server", "nodes", "VMs", "versions", "QEMU", "kernel", "disk"):
        assert [finding["grade"] for finding in about(findings, what)] == ["ok"], about(findings, what)
    assert any("PostgreSQL" in finding["found"] and finding["grade"] == "ok" for finding in about(findings, "database"))
    assert about(findings, "accelerator")[0]["grade"] in ("ok", "warning")
    assert {finding["grade"] for finding in about(findings, "certificates")} == {"ok"}
    assert all(finding["advice"] for finding in findings if finding["grade"] != "ok"), "each finding says what to do"
    assert status == (1 if any(finding["grade"] == "bad" for finding in findings) else 0)
    assert not any(secret in json.dumps(findings) for secret in NEVER)


def test_the_doctor_finds_a_lost_node_and_a_vm_that_cannot_be_placed(site: Platform, api: Api) -> None:
    api("PATCH", "/api/v1/nodes/host-b", {"taints": []})
    site.agents["host-b"].stop()
    try:
        site.wait_node("host-b", ready=False)
        status, findings = doctor(NOVACRON_CONFIG=str(site.config))
        (nodes,) = about(findings, "nodes")
        assert status == 1 and nodes["grade"] == "bad" and "host-b" in nodes["found"] and nodes["advice"]
    finally:
        site.agents["host-b"].start()
        site.wait_node("host-b")


def test_the_doctor_says_what_it_cannot_reach(site: Platform) -> None:
    status, findings = doctor(
        "--database", "postgresql://nova:sesame@127.0.0.1:1/none", NOVACRON_CONFIG="/nonexistent",
        NOVACRON_URL="https://127.0.0.1:1", NOVACRON_TOKEN="nva_nothing",
    )  # fmt: skip
    assert status == 1
    assert about(findings, "database")[0]["grade"] == "bad" and about(findings, "platform")[0]["grade"] == "bad"
    assert not any(secret in json.dumps(findings) for secret in NEVER)


async def test_the_doctor_finds_certificates_that_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "server"
    directory.mkdir()
    authority = pki.Authority.open(directory)
    monkeypatch.setattr(pki, "SERVER_DAYS", 2)
    authority.issue_server(directory, ["localhost"])
    grades = {result.found.split("'")[0]: result.grade for result in await machine.certificates(tmp_path)}
    assert grades == {"the authority": Grade.OK, "the server": Grade.WARNING}
    monkeypatch.setattr(pki, "SERVER_DAYS", 15)
    authority.issue_server(directory, ["localhost"])
    assert {result.grade for result in await machine.certificates(tmp_path)} == {Grade.OK}
    key = pki.new_key()
    month_ago = pki.Authority.open(directory, lambda: time.time() - 31 * 86_400)
    ended = month_ago.issue_node(pki.certificate_request(key, "host-a"), "host-a")
    pki.write_secret(tmp_path / "agent" / "identity" / "node.crt", ended)
    found = (await machine.certificates(tmp_path))[-1]
    assert found.grade is Grade.BAD and "the node's ended on 20" in found.found
    assert "novacron node join-token --node host-a" in found.advice and "agent --rejoin @FILE" in found.advice
    tls = tmp_path / "postgres" / "tls"
    for name, kind, days_ago, grade in (
        ("ca.crt", "authority", 10, Grade.OK),
        ("server.crt", "member", pki.CA_DAYS - 13, Grade.WARNING),
    ):
        pki.write_secret(tls / name, pki.new_authority(time.time() - days_ago * 86_400)[1])
        (found,) = [each for each in await machine.certificates(tmp_path) if f"the database {kind}'s" in each.found]
        assert found.grade is grade
        assert grade is Grade.OK or "novacron database cluster renew" in found.advice
    given = tmp_path / "etcd-client.crt"
    given.write_bytes((tls / "server.crt").read_bytes())
    (tls / "etcd.crt").symlink_to(given)  # which is somebody else's file
    (found,) = [each for each in await machine.certificates(tmp_path) if "the etcd client's" in each.found]
    assert found.grade is Grade.WARNING and str(given) in found.advice
    (directory / "server.crt").write_text("nonsense")
    assert Grade.WARNING in {result.grade for result in await machine.certificates(tmp_path)}


@pytest.mark.parametrize(
    ("left_days", "grade"), [(-1, Grade.BAD), (1, Grade.WARNING), (13, Grade.WARNING), (15, Grade.OK)]
)
def test_the_doctor_looks_at_the_certificate_that_the_api_shows(left_days: int, grade: Grade) -> None:
    """Also at one that was given to the server, or that a proxy shows."""
    (found,) = running.shown_until(1e9 + left_days * 86_400, 1e9)
    assert found.grade is grade and (grade is Grade.OK or "--tls-certificate" in found.advice)


async def test_the_doctor_finds_private_keys_that_others_can_read(tmp_path: Path) -> None:
    assert await key_files.key_files(tmp_path) == []
    authority = pki.Authority.open(tmp_path / "server")
    authority.issue_server(tmp_path / "server", ["localhost"])
    assert [(result.grade, result.found) for result in await key_files.key_files(tmp_path)] == [
        (Grade.OK, "only their owner can read 2 private keys")
    ]
    (tmp_path / "server" / "server.key").chmod(0o640)
    (found,) = await key_files.key_files(tmp_path)
    assert found.grade is Grade.BAD and "mode 0640" in found.found and "chmod 600" in found.advice


async def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    findings = await machine.programs()
    assert {result.grade for result in findings} == {Grade.BAD, Grade.WARNING}
    assert any(result.advice == "apt-get install nftables" for result in findings)
    assert [result.grade for result in await machine.qemu("qemu-system-x86_64")] == [Grade.BAD]


def test_only_good_findings_come_without_advice() -> None:
    assert finding.ok("a", "b").advice == "" and finding.bad("a", "b", "c").advice == "c"


def test_the_doctor_prints_a_table_and_advice(site: Platform) -> None:
    done = site.cli("doctor", check=False)
    assert re.search(r"^ok +server +https://.* is ready$", done.stdout, re.MULTILINE), done.stdout
    assert "What to do:" in done.stdout


def test_a_support_bundle_holds_diagnostics_and_no_secret(site: Platform, tmp_path: Path) -> None:
    seed = "#cloud-config\npassword: sesame-in-user-data\n"
    vm = site.client.create_vm(
        name="bundled", image="tiny", memory_mib=128, power="stopped", cloud_init={"user_data": seed}
    )
    file = tmp_path / "bundle.tar.gz"
    log = tmp_path / "server.log"
    log.write_text(site.server.log.read_text() + "\nreach postgresql://nova:sesame@db/x with Bearer sesamesesame\n")
    try:
        site.cli("support-bundle", str(file), "--state-dir", str(site.directory / "s"), "--log", str(log))
    finally:
        site.client.delete("vms", vm["id"])
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        parts = {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }
    assert set(parts) >= {
        "versions.json", "doctor.json", "api/nodes.json", "api/vms.json", "api/events.json", "metrics/server.txt",
        "metrics/node-host-a.txt", "metrics/node-host-b.txt", "logs/server.log", "processes.txt",
    }  # fmt: skip
    assert "bundled" in parts["api/vms.json"] and "novacron_vms" in parts["metrics/server.txt"]
    assert "novacron_host_cpus" in parts["metrics/node-host-a.txt"]
    whole = "\n".join(parts.values())
    assert site.client.config.token not in whole
    for secret in NEVER:
        assert secret not in whole, secret
    assert not [name for name, text in parts.items() if text.startswith("could not be collected")]
    again = site.cli("support-bundle", str(file), check=False)
    assert again.returncode == 1 and "exists" in again.stderr


def test_while_the_database_is_away_reads_go_on_and_all_reasons_are_given(site: Platform, api: Api) -> None:
    assert api("GET", "/readyz", token=None).status == 200
    nodes = [node["name"] for node in api("GET", "/api/v1/nodes").body["items"]]
    revision = api("GET", "/api/v1/nodes").body["revision"]
    site.postgres.kill()
    try:

        def away() -> bool:
            readiness = api("GET", "/readyz", token=None)
            return readiness.status == 200 and str(readiness.body).count("only reads: ") == 2

        until(away, "both reasons are said", 20)
        until(lambda: "age" in api("GET", "/api/v1/nodes").headers, "an answer says how old it is", 20)
        assert [node["name"] for node in api("GET", "/api/v1/nodes").body["items"]] == nodes
        assert api("GET", f"/api/v1/nodes?min_revision={revision + 1000}").status == 503
        assert api("POST", "/api/v1/vms", {"name": "away", "vcpus": 1, "memory_mib": 64, "image": "tiny"}).status == 503
        shown = site.cli("node", "list")
        assert nodes[0] in shown.stdout and "s old: the server's database is away" in shown.stderr
        assert "only reads" in site.cli("doctor", check=False).stdout
    finally:
        site.postgres.start()

    def back() -> bool:
        answer = api("GET", "/api/v1/nodes")
        return answer.status == 200 and "age" not in answer.headers and site.client.ready() == (True, "ok")

    until(back, "it serves everything again", 30)
    for node in site.agents:
        site.wait_node(node)


def test_a_bundle_on_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="space"):
        bundle.write(tmp_path / "bundle.tar.gz", tmp_path, [])
    assert list(tmp_path.iterdir()) == []
