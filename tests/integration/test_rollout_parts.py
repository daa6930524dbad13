"""What rollouts work with: packages that are installed, a webhook over TLS, annotations for Grafana, metrics' file."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.observers import serving
from lab.platform import open_directory
from lab.ports import free_ports
from novacron import pki
from novacron.rollout import notices
from novacron.rollout.balancer import HAProxy
from novacron.rollout.instances import Environments
from novacron.rollout.model import Colour, Rollout, RolloutState, Share, StepFailed, Strategy
from novacron.rollout.notices import SIGNATURE, TIMESTAMP, NotificationFailed, Receiver
from novacron.rollout.notifications import Notifications
from novacron.rollout.options import RolloutOptions

SECRET = "between us"
PYTHON = "#!/bin/sh\necho novacron {version}\n"


class Heard(NamedTuple):
    """A request that came in."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Listener:
    """A receiver that answers with these statuses in turn, the last one for good."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.heard = list(statuses), list[Heard]()

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        self.heard.append(Heard(path, headers, body))
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[ssl.SSLContext]:
    authority = pki.Authority.open(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue_server(tmp_path, ["127.0.0.1"]))
    yield context


def rolled_back() -> Rollout:
    return Rollout(
        3, Strategy.CANARY, "2", Colour.GREEN, [Share(100, 1.0)], 1.0, version_before="1", by="ann",
        state=RolloutState.ROLLED_BACK, step="remove", reason="too slow", went_back_s=1.5, ended_s=9.0,
    )  # fmt: skip


def test_a_webhook_hears_what_happened_signed_and_again_if_it_was_busy(tls: ssl.SSLContext, tmp_path: Path) -> None:
    listener = Listener(503, 200)
    with serving(0, listener.take, tls) as url:
        notices.tell_webhook(Receiver(f"{url}/rollouts", SECRET, tmp_path / "ca.crt"), rolled_back())
    assert [heard.path for heard in listener.heard] == ["/rollouts"] * 2
    heard = listener.heard[-1]
    stamp = heard.headers[TIMESTAMP.lower()]
    assert abs(int(stamp) - time.time()) < 60
    assert heard.headers[SIGNATURE.lower()] == notices.signature(SECRET, stamp, heard.body)
    said = json.loads(heard.body)
    assert (said["state"], said["reason"], said["version"]) == ("rolled-back", "too slow", "2")
    assert SECRET not in str(heard)


def test_a_webhook_that_refuses_is_asked_once_and_one_that_fails_three_times(
    tls: ssl.SSLContext, tmp_path: Path
) -> None:
    for status, times in ((403, 1), (500, 3)):
        listener = Listener(status)
        with serving(0, listener.take, tls) as url, pytest.raises(NotificationFailed, match=str(status)):
            notices.tell_webhook(Receiver(url, SECRET, tmp_path / "ca.crt"), rolled_back())
        assert len(listener.heard) == times


def test_a_webhook_whose_certificate_is_not_trusted_is_told_nothing(tls: ssl.SSLContext, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    pki.Authority.open(tmp_path / "other")
    listener = Listener(200)
    with serving(0, listener.take, tls) as url, pytest.raises(NotificationFailed):
        notices.tell_webhook(Receiver(url, SECRET, tmp_path / "other/ca.crt"), rolled_back())
    assert not listener.heard


def test_grafana_gets_an_annotation_with_its_token() -> None:
    listener = Listener(200)
    with serving(0, listener.take) as url:
        notices.annotate(Receiver(url, "a-token", None), rolled_back(), "share-10: 2 has 10 %")
    (heard,) = listener.heard
    assert (heard.path, heard.headers["authorization"]) == ("/api/annotations", "Bearer a-token")
    said = json.loads(heard.body)
    assert "share-10" in said["text"] and {"novacron", "rollout", "canary"} <= set(said["tags"])


def test_receivers_that_are_away_are_noted_and_hold_up_no_rollout(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x")
    telling = Notifications(RolloutOptions(grafana=f"http://127.0.0.1:{free_ports(1)[0]}", grafana_token_file=token))
    telling.annotate(rolled_back(), "x")
    noted: list[str] = []
    began = time.monotonic()
    telling.flush(rolled_back(), lambda _, text: noted.append(text))
    assert time.monotonic() - began < 15
    assert len(noted) == 1 and "Grafana could not be notified" in noted[0]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: script/test does")
def test_the_metrics_file_is_as_prometheus_wants_it(tmp_path: Path) -> None:
    notices.write_metrics(tmp_path / "rollout.prom", rolled_back(), 10.0)
    text = (tmp_path / "rollout.prom").read_text()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'novacron_rollout_ended_timestamp_seconds{state="rolled-back"} 9.0' in text
    assert (tmp_path / "rollout.prom").stat().st_mode & 0o777 == 0o644


def environment(at: Path, version: str) -> Path:
    python = at / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(version=version))
    python.chmod(0o755)
    return at


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no Debian")
def test_a_version_comes_from_its_debian_package_and_stays_installed(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    environment(packed / "opt/novacron/server", "1.2.0")
    (packed / "DEBIAN").mkdir()
    (packed / "DEBIAN/control").write_text(
        "Package: novacron-server\nVersion: 1.2.0\nArchitecture: amd64\nMaintainer: x <x@localhost>\nDescription: x\n"
    )
    subprocess.run(
        ["dpkg-deb", "--build", packed, tmp_path / "novacron-server_1.2.0_amd64.deb"], check=True, capture_output=True
    )
    environments = Environments(tmp_path / "root", tmp_path, {})
    environments.give(Colour.GREEN, "1.2.0")
    assert environments.version(Colour.GREEN) == "1.2.0"
    assert environments.version(Colour.BLUE) == ""
    Environments(tmp_path / "root", None, {}).give(Colour.BLUE, "1.2.0")
    assert environments.link(Colour.BLUE).resolve() == environments.link(Colour.GREEN).resolve()


def wheel(directory: Path, version: str) -> None:
    info = f"novacron-{version}.dist-info"
    with zipfile.ZipFile(directory / f"novacron-{version}-py3-none-any.whl", "w") as file:
        file.writestr("novacron/__init__.py", "")
        file.writestr("novacron/__main__.py", f"print('novacron {version}')\n")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: novacron\nVersion: {version}\nProvides-Extra: server\n"
        )
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_a_version_comes_from_its_wheel(tmp_path: Path) -> None:
    wheel(tmp_path, "1.3.0")
    environments = Environments(tmp_path / "root", tmp_path, {})
    environments.give(Colour.BLUE, "1.3.0")
    assert environments.version(Colour.BLUE) == "1.3.0"


def test_a_version_that_is_not_what_it_says_or_not_there_is_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"2.0": environment(tmp_path / "wrong", "1.9")}
    with pytest.raises(StepFailed, match=re.escape("has version 1.9 instead of 2.0")):
        Environments(tmp_path / "root", None, given).give(Colour.BLUE, "2.0")
    with pytest.raises(StepFailed, match="--packages"):
        Environments(tmp_path / "root", None, {}).give(Colour.BLUE, "3.0")
    with pytest.raises(StepFailed, match="has neither"):
        Environments(tmp_path / "root", tmp_path, {}).give(Colour.BLUE, "3.0")
    assert not (tmp_path / "root/blue").exists()
    assert not list((tmp_path / "root/versions").iterdir()), "nothing half installed is left"


class AdminSocket(threading.Thread):
    """Answers weights as HAProxy's admin socket does, and keeps what each of its commands left."""

    def __init__(self, path: Path, weights: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.weights, self.after = weights, list[dict[str, str]]()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()

    def run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                verb, _, server, *weight = connection.recv(1000).decode().split()
                colour = server.rpartition("/")[2]
                if verb == "set":
                    self.weights[colour] = weight[0]
                    self.after.append(dict(self.weights))
                answer = f"{self.weights[colour]} (initial 1)\n" if verb == "get" else "\n"
                connection.sendall(answer.encode())


def test_a_backend_is_at_no_moment_without_weights() -> None:
    with open_directory("nvha-") as directory:
        config = directory / "haproxy.cfg"
        config.write_text("backend api\n  server blue 1:1 weight 100\n  server green 1:2 weight 0\n")
        admin = AdminSocket(directory / "sock", {"blue": "100", "green": "0"})
        admin.start()
        haproxy = HAProxy(config, directory / "sock", "true", 5.0)
        for colour in (Colour.GREEN, Colour.BLUE):
            for first in (colour, colour.other):  # in whatever order they are named
                weights = {first: 0, first.other: 0, colour: 100}
                haproxy.shift(["api"], weights)
        assert len(admin.after) == 8
        assert all(set(left.values()) != {"0"} for left in admin.after), admin.after
        assert "green 1:2 weight 0" in config.read_text()
