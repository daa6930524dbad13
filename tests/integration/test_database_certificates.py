"""The certificates with which the members of a database cluster know one another and reach etcd, as they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from lab.database_cluster import DatabaseCluster, EtcdTls, Place, database_cluster
from lab.database_writer import Writer
from novacron import pki
from novacron.local.doctor import machine
from novacron.local.doctor.finding import Grade
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DAY_S = 86_400.0
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
VALID_S = 1000 * DAY_S


class Places:
    """A cluster, and who issues what its members and etcd show one another."""

    def __init__(self, cluster: DatabaseCluster) -> None:
        assert cluster.client_tls is not None and cluster.etcd_tls is not None
        self.cluster, self.client, self.etcd = cluster, cluster.client_tls, cluster.etcd_tls
        self.replace_all()

    def issue(self, tls: EtcdTls, left_s: float) -> None:
        """Put a certificate into the files of one side that ends in ``left_s``, or has ended."""
        tls.issue(self._authority, left_s)

    def replace_all(self) -> None:
        """Give both sides certificates of another authority."""
        self._authority = pki.new_authority(time.time())
        for tls in (self.client, self.etcd):
            self.issue(tls, VALID_S)

    def reconnect(self) -> None:
        """Let all connections to etcd end: those that are open outlive certificates."""
        for each in self.cluster.etcd:
            each.kill()
        self.cluster.start_etcd()

    def said(self, place: Place | None = None) -> str:
        """Return what an operator sees who asks how the cluster is, in one line."""
        return " ".join(self.cluster.tell("status", place=place).stderr.split())


@pytest.fixture(scope="module")
def made() -> Iterator[Places]:
    with database_cluster(tls=True) as cluster:
        places = Places(cluster)
        cluster.up()
        yield places


@pytest.fixture
def places(made: Places) -> Places:
    made.cluster.wait_well()
    return made


def writes_go_on(writer: Writer) -> bool:
    return writer.count_after(time.monotonic() - 1) > 5


def test_certificates_for_etcd_are_warned_of_and_replaced_in_place(places: Places) -> None:
    cluster, place = places.cluster, places.cluster.places[0]
    patroni = [each.patroni_pid for each in cluster.places]
    with Writer(cluster.url, 1, pause_s=0.05).writing() as writer:
        until(lambda: writes_go_on(writer), "writes are acknowledged")
        places.issue(places.client, 13 * DAY_S)
        places.issue(places.etcd, 13 * DAY_S)
        said = places.said()
        assert "this machine's certificate of the etcd client ends on" in said and "--etcd-certificate" in said
        assert "etcd authority" not in said, "it has ten years"
        assert all(f"the certificate of etcd at {each.url} ends on" in said for each in cluster.etcd), said
        findings = {each.found.split("'s")[0]: each for each in asyncio.run(machine.certificates(place.state))}
        assert findings["the etcd client"].grade is Grade.WARNING and findings["the etcd authority"].grade is Grade.OK
        assert str(places.client.certificate) in findings["the etcd client"].advice
        places.replace_all()
        places.reconnect()
        cluster.wait_well()
        until(lambda: writes_go_on(writer), "writes go on", 60)
    assert [each.patroni_pid for each in cluster.places] == patroni
    assert writer.lost() == set()


def test_the_status_says_by_its_machines_clock_what_ends_and_has_ended(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", FAKETIME)
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    for days, words in (
        (VALID_S / DAY_S - 15, ()),
        (VALID_S / DAY_S - 13, ("certificate of the etcd client ends on", "the certificate of etcd at https://")),
        (VALID_S / DAY_S + 1, ("certificate of the etcd client ended on", "certificate has expired")),
        (pki.CA_DAYS - 13, ("certificate of the database member ends on", "database authority ends on")),
    ):
        monkeypatch.setenv("FAKETIME", f"+{days:.0f}d")
        said = places.said()
        assert all(each in said for each in words) and bool(said) == bool(words), (days, said)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ("client", "this machine's certificate of the etcd client ended on"),
        ("etcd", "certificate has expired"),
    ],
)
def test_when_a_certificate_for_etcd_has_ended_it_is_said_and_a_valid_one_ends_the_outage(
    places: Places, side: str, words: str
) -> None:
    cluster, tls = places.cluster, getattr(places, side)
    patroni = [each.patroni_pid for each in cluster.places]
    with Writer(cluster.url, 1, pause_s=0.05).writing() as writer:
        until(lambda: writes_go_on(writer), "writes are acknowledged")
        places.issue(tls, -DAY_S)
        for each in cluster.etcd:
            each.kill()
        peers = ",".join(f"{each.name}={each.peer_url}" for each in cluster.etcd)
        for each in cluster.etcd:
            each.start(peers)
        until(lambda: words in places.said(), f"an operator sees: {words}", 60)
        said = places.said()
        assert "put valid ones into the files of etcd, and into those of --etcd-ca" in said, said
        until(lambda: writer.count_after(time.monotonic() - 3) == 0, "no member may be the primary", 60)
        places.issue(tls, VALID_S)
        until(lambda: writes_go_on(writer), "writes go on", 90)
        cluster.wait_well()
    assert [each.patroni_pid for each in cluster.places] == patroni, "no Patroni was started again"
    assert writer.lost() == set()


def test_a_standby_takes_over_though_every_members_certificate_has_ended(places: Places) -> None:
    cluster = places.cluster
    leader = cluster.leader()
    for place in cluster.places:
        place.show_certificate(-DAY_S)
    other = next(place for place in cluster.places if place is not leader)
    with Writer(cluster.url, 1, pause_s=0.05).writing() as writer:
        until(lambda: writes_go_on(writer), "writes are acknowledged")
        leader.kill()
        until(lambda: cluster.status(other)["primary"] not in (None, leader.name), "a standby takes over", 90)
        until(lambda: writes_go_on(writer), "writes go on", 60)
        leader.start()  # which renews its own
        for place in cluster.places:
            if place is not leader:
                assert cluster.tell("renew", place=place).returncode == 0
        cluster.wait_well()
    assert writer.lost() == set()


def test_a_member_that_starts_years_later_renews_its_certificate_by_itself(places: Places) -> None:
    cluster = places.cluster
    leader = cluster.leader()
    standby = next(place for place in cluster.places if place is not leader)
    standby.show_certificate(13 * DAY_S)
    assert "certificate of the database member ends on" in places.said(standby)
    standby.stop()
    standby.start()
    cluster.wait_well()
    assert standby.files.certificate_ends()["database member"] > time.time() + 3649 * DAY_S
    assert "renewed this member's certificate" in (standby.state / "run.log").read_text()
    assert cluster.status()["primary"] == leader.name
