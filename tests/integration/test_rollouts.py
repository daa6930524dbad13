"""Rollouts behind a real HAProxy, with two real servers over one PostgreSQL, under a load that counts what fails."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab.observers import serving
from lab.platform import until
from lab.rollouts import NEW, OLD, Installation, Load, finished, installation
from novacron.rollout import notices
from novacron.rollout.model import Colour
from tests.waiting import pause

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: script/test does")

FORWARD = ("install", "start", "health", "smoke", "share-100", "watch-100", "drain", "stop")
BACK = ("restore", "verify", "remove")
UNREADY, ERRORS, SLOW = "1.1.1-unready", "1.1.2-errors", "1.1.3-slow"
CANARY = {"shares": "10,50,100", "step": 8.0, "check-every": 1.0, "settle": 6.0, "window": 5, "watch": 8.0}
BACK_S_MAX = 30.0


@pytest.fixture(scope="module")
def at() -> Iterator[Installation]:
    with installation() as running:
        yield running


@pytest.fixture(autouse=True)
def usual_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "at" in request.fixturenames:
        request.getfixturevalue("at").write_settings()


def check_nothing_failed(load: Load) -> None:
    assert len(load.answered) > 100, "hardly anything was asked: this tests nothing"
    assert not load.failed(), f"{len(load.failed())} of {len(load.answered)}: {load.failed()[:5]}"


def check_one_runs(at: Installation, version: str) -> None:
    """See that this version has all requests, and that the other place is empty."""
    assert at.serving() == {version}
    assert sum(at.instances.running(colour) for colour in Colour) == 1


def test_a_blue_green_rollout_and_the_way_back_fail_no_request(at: Installation) -> None:
    with Load(at) as load:
        code, said = at.rollout("start", "--strategy", "blue-green", "--version", NEW)
        assert code == 0, said
        check_one_runs(at, NEW)
        code, said = at.rollout("rollback")
        assert code == 0, said
    check_nothing_failed(load)
    check_one_runs(at, OLD)
    code, said = at.rollout("history", "-o", "json")
    done = json.loads(said)
    assert [(one["strategy"], one["version"], one["state"]) for one in done] == [
        ("rollback", OLD, "done"), ("blue-green", NEW, "done"), ("begin", OLD, "done"),
    ]  # fmt: skip
    assert [event["step"] for event in done[1]["events"]][: len(FORWARD)] == list(FORWARD)
    assert 'novacron_rollout_state{state="done"} 1.0' in (at.directory / "rollout.prom").read_text()


def test_a_version_that_is_never_ready_gets_no_request(at: Installation) -> None:
    at.write_settings(health_tries=4)
    with Load(at) as load:
        code, said = at.rollout("start", "--version", UNREADY)
    assert code == 1 and "not ready after 4 tries" in said, said
    check_nothing_failed(load)
    check_one_runs(at, OLD)
    assert at.status()["state"] == "rolled-back"


def test_a_killed_rollout_goes_on_with_the_step_in_which_it_was(at: Installation) -> None:
    version = at.other_version()
    with Load(at) as load:
        code, said = finished(at.command("start", "--version", version, killed_at="share-100:done"))
        assert code == -signal.SIGKILL, said
        status = at.status()
        assert (status["state"], status["step"], status["abandoned"]) == ("running", "share-100", True)
        refused, said = at.rollout("start", "--version", OLD)
        assert refused == 4 and "novacron rollout resume" in said
        code, said = at.rollout("resume")
        assert code == 0, said
    check_nothing_failed(load)
    check_one_runs(at, version)


def test_weights_outlive_a_reload_and_a_crash_of_haproxy(at: Installation) -> None:
    serving = at.serving()
    at.kill_haproxy()
    at.start_haproxy()
    assert at.serving() == serving


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["begun", "done"])
@pytest.mark.parametrize("step", FORWARD)
def test_a_rollout_killed_at_a_step_goes_on(at: Installation, step: str, moment: str) -> None:
    version = at.other_version()
    with Load(at, clients=2) as load:
        code, said = finished(at.command("start", "--version", version, killed_at=f"{step}:{moment}"))
        assert code == -signal.SIGKILL, said
        code, said = at.rollout("resume")
        assert code == 0, said
    check_nothing_failed(load)
    check_one_runs(at, version)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["begun", "done"])
@pytest.mark.parametrize("step", FORWARD)
def test_a_rollout_killed_at_a_step_goes_back(at: Installation, step: str, moment: str) -> None:
    (before,), version = at.serving(), at.other_version()
    with Load(at, clients=2) as load:
        code, said = finished(at.command("start", "--version", version, killed_at=f"{step}:{moment}"))
        assert code == -signal.SIGKILL, said
        code, said = at.rollout("abort")
        assert code == 0, said
    check_nothing_failed(load)
    check_one_runs(at, before)
    assert 0 < at.status()["went_back_s"] < BACK_S_MAX


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["begun", "done"])
@pytest.mark.parametrize("step", BACK)
def test_a_way_back_killed_at_a_step_goes_on_back(at: Installation, step: str, moment: str) -> None:
    (before,), version = at.serving(), at.other_version()
    with Load(at, clients=2) as load:
        code, said = finished(at.command("start", "--version", version, killed_at="watch-100:begun"))
        assert code == -signal.SIGKILL, said
        code, said = finished(at.command("abort", killed_at=f"{step}:{moment}"))
        assert code == -signal.SIGKILL, said
        code, said = at.rollout("resume")
        assert code == 0, said
    check_nothing_failed(load)
    check_one_runs(at, before)


@pytest.mark.slow
def test_an_aborted_rollout_goes_back_within_seconds_and_tells_of_it(at: Installation) -> None:
    (before,), version = at.serving(), at.other_version()
    secret, told, annotated = at.directory / "secret", list[str](), list[str]()
    secret.touch(mode=0o600)
    secret.write_text("between us")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(at.directory / "novacron.pem")

    def hear(path: str, headers: Mapping[str, str], body: bytes) -> int:
        del path
        signed = notices.signature("between us", headers["x-novacron-timestamp"], body)
        assert headers["x-novacron-signature"] == signed
        told.append(json.loads(body)["state"])
        return 200

    def annotate(path: str, headers: Mapping[str, str], body: bytes) -> int:
        del path, headers
        annotated.append(json.loads(body)["text"])
        return 200

    with serving(0, hear, tls) as webhook, serving(0, annotate) as grafana, Load(at) as load:
        at.write_settings(
            watch=60, webhook=webhook, webhook_secret_file=str(secret), webhook_ca=str(at.ca), grafana=grafana,
            grafana_token_file=str(secret),
        )  # fmt: skip
        process = at.command("start", "--version", version)
        until(lambda: at.status()["step"] == "watch-100", "it is watched", 40)
        began = time.monotonic()
        code, said = at.rollout("abort")
        assert code == 0, said
        assert time.monotonic() - began < BACK_S_MAX
        code, said = finished(process)
        assert code == 1 and "aborted by" in said
    check_nothing_failed(load)
    check_one_runs(at, before)
    assert told == ["running", "going-back", "rolled-back"]
    for step in ("install", "share-100", "goes back", "restore", "verify"):
        assert any(step in text for text in annotated), annotated


@pytest.mark.slow
def test_a_rollout_waits_while_it_is_paused_and_two_at_once_are_refused(at: Installation) -> None:
    version = at.other_version()
    at.write_settings(watch=4)
    process = at.command("start", "--version", version)
    until(lambda: at.status()["step"] == "watch-100", "it is watched", 40)
    assert at.rollout("pause")[0] == 0
    assert at.rollout("start", "--version", OLD)[0] == 4
    pause(6)
    status = at.status()
    assert (status["state"], status["step"]) == ("paused", "watch-100") and process.poll() is None
    assert at.rollout("resume")[0] == 0
    code, said = finished(process)
    assert code == 0, said


@pytest.mark.slow
def test_a_rollout_outlives_haproxy_that_is_killed_and_started_again(at: Installation) -> None:
    version = at.other_version()
    at.write_settings(watch=6, haproxy_wait=20)
    process = at.command("start", "--version", version)
    until(lambda: at.status()["step"] == "watch-100", "it is watched", 40)
    at.kill_haproxy()
    pause(2)
    at.start_haproxy()
    code, said = finished(process)
    assert code == 0, said
    check_one_runs(at, version)


@pytest.mark.slow
def test_a_rollout_whose_haproxy_stays_away_says_so_and_can_be_brought_back(at: Installation) -> None:
    (before,), version = at.serving(), at.other_version()
    at.write_settings(watch=60, haproxy_wait=2)
    process = at.command("start", "--version", version)
    until(lambda: at.status()["step"] == "watch-100", "it is watched", 40)
    at.kill_haproxy()
    code, said = finished(process)
    assert code == 1 and "can't go back" in said, said
    assert at.status()["state"] == "failed"
    at.start_haproxy()
    code, said = at.rollout("abort")
    assert code == 0, said
    check_one_runs(at, before)


@pytest.fixture(scope="module")
def measured(at: Installation) -> Iterator[str]:
    url = at.start_prometheus()
    yield url
    at.stop_prometheus()


@pytest.mark.slow
def test_a_canary_gets_its_shares_and_fails_no_request(at: Installation, measured: str) -> None:
    version = at.other_version()
    at.write_settings(prometheus=measured, **{name.replace("-", "_"): value for name, value in CANARY.items()})
    with Load(at) as load:
        code, said = at.rollout("start", "--strategy", "canary", "--version", version)
        assert code == 0, said
    check_nothing_failed(load)
    check_one_runs(at, version)
    steps = [event["step"] for event in at.status()["events"]]
    assert steps.count("share-10") == steps.count("share-50") == steps.count("share-100") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("version", "why"), [(ERRORS, "requests"), (SLOW, "p95")])
def test_a_canary_that_is_worse_goes_back(at: Installation, measured: str, version: str, why: str) -> None:
    (before,) = at.serving()
    at.write_settings(
        prometheus=measured,
        smoke=False,
        **{name.replace("-", "_"): value for name, value in {**CANARY, "step": 60.0}.items()},
    )
    with Load(at) as load:
        code, said = at.rollout("start", "--strategy", "canary", "--version", version)
    assert code == 1 and why in said, said
    status = at.status()
    assert status["state"] == "rolled-back" and status["step"] == "remove"
    assert 0 < status["went_back_s"] < BACK_S_MAX
    assert all(request.status in (200, 201, 204, 500) for request in load.answered)
    check_one_runs(at, before)


@pytest.mark.slow
def test_a_canary_without_measurements_goes_back(at: Installation, measured: str) -> None:
    (before,), version = at.serving(), at.other_version()
    at.write_settings(
        prometheus=measured, **{name.replace("-", "_"): value for name, value in {**CANARY, "step": 60.0}.items()}
    )
    with Load(at) as load:
        process = at.command("start", "--strategy", "canary", "--version", version)
        until(lambda: at.status()["step"] == "watch-10", "it is watched", 40)
        at.stop_prometheus()
        code, said = finished(process)
    assert code == 1 and "can't be judged" in said, said
    check_nothing_failed(load)
    check_one_runs(at, before)
    assert 0 < at.status()["went_back_s"] < BACK_S_MAX


@pytest.mark.slow
def test_haproxys_count_alone_sends_a_version_with_errors_back(at: Installation) -> None:
    (before,) = at.serving()
    at.write_settings(watch=30, smoke=False)
    with Load(at):
        code, said = at.rollout("start", "--version", ERRORS)
    assert code == 1 and "HAProxy counts" in said, said
    check_one_runs(at, before)


def test_the_deployed_haproxy_configuration_is_valid(at: Installation) -> None:
    at.write_haproxy()
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(at.directory / "haproxy.cfg")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr.upper(), done.stderr


def test_the_journal_is_for_its_owner_alone(at: Installation) -> None:
    records = at.directory / "rollouts/rollouts"
    assert records.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in Path(records).iterdir())
