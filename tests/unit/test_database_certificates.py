"""The certificates that a member of a database cluster uses, with a moved clock: who renews them, and who warns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from novacron import pki
from novacron.local.database_cluster import health, process
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import Cluster, ClusterMember, EtcdAccess
from novacron.server import certificates
from novacron.server.settings import ServerSettings
from tests.waiting import until


def kept_member(directory: Path, now_s: float) -> MemberFiles:
    """Return a member's folder, with certificates of that moment."""
    key, ca = pki.new_authority(now_s)
    cluster = Cluster.new("novacron", EtcdAccess(endpoints=("http://192.0.2.1:2379",)), tls=False, lone_writes=True)
    cluster = msgspec.structs.replace(cluster, ca_key=key.decode(), ca=ca.decode())
    files, own = MemberFiles(directory), ClusterMember(name="database-1", host="192.0.2.11")
    files.keep(cluster, own)
    files.ca.parent.mkdir()
    files._write_certificates(cluster, own, now_s)
    return files


@pytest.mark.parametrize("what", ["database", "database-authority"])
def test_a_member_renews_its_certificates_before_anybody_is_warned(tmp_path: Path, what: str) -> None:
    began_s = time.time()
    files = kept_member(tmp_path, began_s)
    life_s, before = pki.CA_DAYS * 86_400.0, files.certificate.read_bytes()
    due_s = began_s + life_s * (1 - pki.RENEW_BELOW[what])
    if what == "database-authority":  # the member's own was renewed in between
        assert files.renew_certificates(due_s - 86_400)
        before = files.certificate.read_bytes()
    assert not files.renew_certificates(due_s - 3600) and files.certificate.read_bytes() == before
    assert files.renew_certificates(due_s + 3600)
    ends = files.certificate_ends()
    assert ends["database member"] > due_s + life_s * 0.9
    assert (ends["database authority"] > due_s + life_s * 0.9) == (what == "database-authority")
    assert not files.renew_certificates(due_s + 7200), "once is enough"
    known = files.cluster()
    assert known is not None and known.ca.encode() == files.ca.read_bytes()
    renewed = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(files.ca.read_bytes()))


def test_members_that_know_the_former_authority_trust_what_the_renewed_one_issues(tmp_path: Path) -> None:
    began_s = time.time()
    files = kept_member(tmp_path, began_s)
    former = x509.load_pem_x509_certificate(files.ca.read_bytes())
    files.renew_certificates(began_s + 9 * 365 * 86_400)
    assert files.ca.read_bytes() != former.public_bytes(serialization.Encoding.PEM)
    x509.load_pem_x509_certificate(files.certificate.read_bytes()).verify_directly_issued_by(former)


def test_a_certificate_that_was_lost_or_damaged_is_issued_again(tmp_path: Path) -> None:
    files = kept_member(tmp_path, time.time())
    files.certificate.unlink()
    assert files.renew_certificates(time.time()) and "database member" in files.certificate_ends()
    files.certificate.write_bytes(b"nonsense")
    assert files.renew_certificates(time.time()) and "database member" in files.certificate_ends()


def test_the_status_warns_of_certificates_14_days_before_they_end(tmp_path: Path) -> None:
    files = kept_member(tmp_path, time.time())
    ends_at_s = files.certificate_ends()["database member"]
    assert health.of_certificates(files.certificate_ends(), ends_at_s - 15 * 86_400) == []
    soon = health.of_certificates(files.certificate_ends(), ends_at_s - 13 * 86_400)
    assert {problem.text.split(" ends on")[0] for problem in soon} == {
        "this machine's certificate of the database member", "this machine's certificate of the database authority"
    }  # fmt: skip
    assert all("novacron database cluster renew" in problem.hint for problem in soon)
    assert "ended on" in health.of_certificates({"database member": ends_at_s}, ends_at_s + 1)[0].text


def test_certificates_for_etcd_are_looked_at_beside_a_members_own(tmp_path: Path) -> None:
    now_s = time.time()
    files = kept_member(tmp_path, now_s)
    given = tmp_path / "client.crt"
    given.write_bytes(pki.issue_host(*pki.new_authority(now_s), "client", ["localhost"], now_s - 3640 * 86_400)[1])
    files.link_etcd(EtcdAccess(endpoints=("https://x:2379",), ca=str(tmp_path / "none"), certificate=str(given)))
    ends = files.certificate_ends()
    assert ends.keys() == {"database authority", "database member", "etcd client"}, "one that is away is left out"
    (soon,) = health.of_certificates(ends, now_s)
    assert "certificate of the etcd client ends on" in soon.text and "--etcd-certificate" in soon.hint
    settings = types.SimpleNamespace(
        state_dir=tmp_path / "server", own_certificate=(tmp_path / "none",), given_certificate=None
    )
    metric = certificates.expiries(cast(ServerSettings, settings))
    assert metric == {
        ("database",): ends["database member"], ("database-authority",): ends["database authority"],
        ("etcd-client",): ends["etcd client"],
    }  # fmt: skip
    files.link_etcd(EtcdAccess(endpoints=("http://x:2379",)))
    assert "etcd client" not in files.certificate_ends() and given.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_what_root_renews_stays_readable_for_the_user_of_the_service(tmp_path: Path) -> None:
    began_s, service = time.time(), 12345
    files = kept_member(tmp_path, began_s)
    for path in (files.directory, *files.directory.rglob("*")):
        os.chown(path, service, service)
    assert files.renew_certificates(began_s + pki.CA_DAYS * 0.9 * 86_400), "the authority's, too"
    assert {path.stat().st_uid for path in files.directory.rglob("*")} == {service}


def test_a_patroni_that_does_not_run_or_only_begins_is_not_ended_by_a_renewal(tmp_path: Path) -> None:
    files = kept_member(tmp_path, time.time())
    assert not process.reload(files)
    files.pid_file.write_text(f"{os.getpid()}\n")
    assert not process.reload(files), "the number is another program's by now"
    begins = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", str(files.patroni)], stdin=subprocess.PIPE
    )
    with begins:
        files.pid_file.write_text(f"{begins.pid}\n")
        until(lambda: process.reload(files), "its command line is to be seen: that is some time after its start")
        assert begins.stdin is not None
        begins.stdin.close()
        assert begins.wait(30) == 0
