"""What operators watch a platform with, for tests: a real Prometheus, its exporters and Alertmanager, a webhook that
hears of alerts, and an OpenTelemetry collector of our own."""

from __future__ import annotations

import http.server
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lab.platform import Platform, until
from lab.ports import free_ports

DEPLOYED = Path(__file__).parents[1] / "deploy"
STOP_S = 15.0
READY_S = 30.0
UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(?<![\w.])(\d+)(ms|[smhd])\b")
Json = Any
Taken = Callable[[str, Mapping[str, str], bytes], int]
"""Takes path, headers and body of a request, and returns the status of the answer."""


class Span(NamedTuple):
    """A span as it came in."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    failed: bool
    attributes: dict[str, str]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    taken: Taken


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status = self.server.taken(self.path, headers, body)
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serving(port: int, taken: Taken, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Answer what is posted to a port of this machine (0: any that is free) as ``taken`` says, a status; yield the
    address."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.taken = taken
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Collector:
    """Takes spans by OTLP over HTTP, and keeps them. ``delay_s``: how long it thinks about each batch."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.spans: list[Span] = []
        self.delay_s = 0.0

    @contextmanager
    def running(self) -> Iterator[Collector]:
        with serving(self.port, self._take):
            yield self

    def _take(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        if path != "/v1/traces":
            return 404
        time.sleep(self.delay_s)
        if headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {a.key: str(getattr(a.value, a.value.WhichOneof("value"))) for a in span.attributes}
                    self.spans.append(
                        Span(span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name, service,
                             span.status.code == 2, attributes)
                    )  # fmt: skip
        return 200

    def of(self, trace: str) -> list[Span]:
        """Return the spans of one trace so far."""
        return [span for span in list(self.spans) if span.trace == trace]


class Webhook:
    """Hears of alerts as Alertmanager tells them."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/"
        self.told: list[Json] = []
        """Its messages (Alertmanager's webhook format, version 4)."""

    @contextmanager
    def running(self) -> Iterator[Webhook]:
        with serving(self.port, self._take):
            yield self

    def _take(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        del path, headers
        self.told.append(json.loads(body))
        return 200

    def alerts(self, name: str, status: str = "firing") -> list[Json]:
        """Return what was said of an alert."""
        return [
            alert
            for message in list(self.told)
            for alert in message["alerts"]
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]


class Daemon:
    """A program of the tests' own, with its log."""

    def __init__(self, arguments: Sequence[str], log: Path, answers: str, environment: dict[str, str] | None = None):
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            until(lambda: self._answers(answers), f"{arguments[0]} answers", READY_S)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}:\n{log.read_text(errors='replace')[-3000:]}") from None

    def _answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  # nosec B310 (http, our own)
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def faster(text: str, times: float) -> str:
    """Return rules or a configuration in which every duration is so many times shorter, a second at least."""

    def shorter(match: re.Match[str]) -> str:
        return f"{max(1000, round(int(match[1]) * UNITS_S[match[2]] * 1000 / times))}ms"

    return DURATION.sub(shorter, text)


class Prometheus:
    """A Prometheus with the configuration and the rules that operators get, which watches a platform.

    ``times``: how many times faster everything happens. ``exporters``: addresses of those of PostgreSQL and Redis.
    ``shorten``: makes rules faster in another way. ``pace_s``: how often it scrapes when all is faster.
    """

    def __init__(
        self, directory: Path, site: Platform, alertmanager: str = "", times: float = 1.0,
        exporters: Mapping[str, str] | None = None, shorten: Callable[[str], str] | None = None, pace_s: int = 1,
    ) -> None:  # fmt: skip
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        client = site.client.config
        (directory / "rules").mkdir(parents=True)
        quicker = shorten or (lambda text: faster(text, times) if times > 1 else text)
        for path in (DEPLOYED / "prometheus/rules").iterdir():
            (directory / "rules" / path.name).write_text(quicker(path.read_text()))
        (directory / "novacron.token").write_text(client.token)
        (directory / "novacron-ca.crt").write_text(client.ca or "")
        config = yaml.safe_load((DEPLOYED / "prometheus/prometheus.yml").read_text())
        text = yaml.safe_dump(config).replace("/etc/prometheus/", f"{directory}/")
        for was, now in {
            "localhost:7443": client.url.removeprefix("https://"),
            "localhost:9090": f"127.0.0.1:{self.port}",
            "localhost:9093": alertmanager or "127.0.0.1:1",
            **(exporters or {}),
        }.items():
            assert was in text, was
            text = text.replace(was, now)
        config = yaml.safe_load(text)
        config["global"].update(scrape_interval=f"{10 / times}s".replace(".0s", "s") if times <= 1 else "1s")
        if times > 1:
            config["global"] = {
                "scrape_interval": f"{pace_s}s", "scrape_timeout": f"{pace_s}s", "evaluation_interval": "1s",
            }  # fmt: skip
            for job in config["scrape_configs"]:
                job.pop("scrape_interval", None)
                for discovery in job.get("http_sd_configs", ()):
                    discovery["refresh_interval"] = "1s"
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._daemon = Daemon(
            ["prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address=127.0.0.1:{self.port}", "--enable-feature=exemplar-storage"],
            directory / "prometheus.log", f"{self.url}/-/ready",
        )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Json:
        """Return what an endpoint of its HTTP API answers."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:  # noqa: S310  # nosec B310
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Json]:
        """Return the vector that an expression is now."""
        return list(self.ask("query", query=expression)["result"])

    def stop(self) -> None:
        self._daemon.stop()


class Alertmanager:
    """An Alertmanager with the configuration that operators get, which tells ``webhook``."""

    def __init__(self, directory: Path, webhook: Webhook, times: float = 1.0) -> None:
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        directory.mkdir(parents=True)
        text = (DEPLOYED / "alertmanager/alertmanager.yml").read_text()
        assert "http://localhost:9099/" in text
        text = text.replace("http://localhost:9099/", webhook.url)
        (directory / "alertmanager.yml").write_text(faster(text, times) if times > 1 else text)
        self._daemon = Daemon(
            ["prometheus-alertmanager", f"--config.file={directory / 'alertmanager.yml'}",
             f"--storage.path={directory / 'data'}", f"--web.listen-address={self.address}",
             "--cluster.listen-address="],
            directory / "alertmanager.log", f"http://{self.address}/-/ready",
        )  # fmt: skip

    def stop(self) -> None:
        self._daemon.stop()


class Exporter:
    """What measures PostgreSQL, or Redis, for Prometheus. ``port``: where it listens; by default, where it can."""

    def __init__(self, directory: Path, kind: str, url: str, port: int = 0) -> None:
        self.port = port or free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        arguments, environment = {
            "postgresql": (
                ["prometheus-postgres-exporter", f"--web.listen-address={self.address}"],
                {"DATA_SOURCE_NAME": url},
            ),
            "redis": (
                ["prometheus-redis-exporter", f"-web.listen-address={self.address}", f"-redis.addr={url}"],
                {},
            ),
        }[kind]
        log = directory / f"{kind}-exporter.log"
        self._daemon = Daemon(arguments, log, f"http://{self.address}/metrics", environment)

    def stop(self) -> None:
        self._daemon.stop()
