"""Where the audit log is sent: syslog (RFC 5424) over TCP, TLS or UDP, and collectors of OTLP logs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from novacron import __version__
from novacron.audit_chain.entries import ChainedRecord, ChainEntry
from novacron.model.errors import InvalidInput
from novacron.server.settings import AuditSettings

CONNECT_S, SEND_S = 5.0, 10.0
PORTS = {"udp": 514, "tcp": 514, "tls": 6514}
DATAGRAM_BYTES_MAX = 2048
"""What receivers of syslog over UDP should take (RFC 5426, section 3.2)."""
DATAGRAM_PAUSE_S = 0.001
"""Between two datagrams: UDP knows no back-pressure."""
TEXTS_MAX = (500, 100, 20)
"""To how many characters long texts are cut, from the first until the message fits."""
AUDIT_FACILITY, NOTICE, WARNING = 13, 5, 4
SD_ID = "audit@32473"
"""Name of the structured data: 32473 is the enterprise number for those who have none (RFC 5612)."""
DAEMON = "novacron"


class SyslogTarget(NamedTuple):
    """Where a syslog server is: ``udp``, ``tcp`` or ``tls``, and the file of its authority, if not the system's."""

    transport: str
    host: str
    port: int
    ca: Path | None = None


def syslog_target(url: str, ca: Path | None) -> SyslogTarget:
    """Return what a URL says. Raises InvalidInput."""
    hint = "write it like tls://logs.example.net:6514, tcp://logs.example.net or udp://logs.example.net"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"{url!r}: {error}", field="audit-syslog", hint=hint) from None
    if parts.scheme not in PORTS or not host or parts.path.strip("/") or parts.query or parts.username:
        raise InvalidInput(f"{url!r} is not the address of a syslog server", field="audit-syslog", hint=hint)
    if ca is not None and parts.scheme != "tls":
        raise InvalidInput("only tls:// uses a certificate authority", field="audit-syslog-ca", hint=hint)
    return SyslogTarget(parts.scheme, host, port or PORTS[parts.scheme], ca)


def _printable(text: str, most: int) -> str:
    """Return text without control characters, and not too long."""
    clean = re.sub(r"[\x00-\x1f\x7f]", " ", text)
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _parameter(name: str, value: object, most: int) -> str:
    escaped = re.sub(r'(["\\\]])', r"\\\1", _printable(str(value), most))
    return f'{name}="{escaped}"'


def _message(entry: ChainEntry, record: ChainedRecord, host: str, most: int) -> bytes:
    severity = NOTICE if record.outcome == "done" else WARNING
    shown = {
        "seq": entry.seq, "hash": entry.hash, "id": record.id, "actor": record.actor, "user_id": record.user_id,
        "token": record.token, "address": record.address, "method": record.method, "path": record.path,
        "action": record.action, "object": record.object, "name": record.name, "project": record.project,
        "outcome": record.outcome, "status": record.status, "request_id": record.request_id,
    }  # fmt: skip
    data = " ".join(_parameter(name, value, most) for name, value in shown.items() if value not in (None, ""))
    at = record.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    action = re.sub(r"[^\x21-\x7e]", "_", record.action)[:32] or "-"
    head = f"<{8 * AUDIT_FACILITY + severity}>1 {at} {host} {DAEMON} {os.getpid()} {action} [{SD_ID} {data}]"
    what = record.name or record.object or ""
    text = f"{record.actor} {record.action} {what} {record.outcome} {record.detail}"
    return f"{head} {_printable(' '.join(text.split()), most)}".encode(errors="replace")


def syslog_message(entry: ChainEntry, host: str, bytes_max: int | None = None) -> bytes:
    """Return an entry as RFC 5424 has it. ``bytes_max``: long texts are cut until it is no longer than that."""
    assert entry.record is not None
    for most in TEXTS_MAX:
        message = _message(entry, entry.record, host, most)
        if bytes_max is None or len(message) <= bytes_max:
            return message
    return message[:bytes_max]


class Syslog:
    """Sends entries to a syslog server. TCP and TLS: each message after its length (RFC 6587, 5425)."""

    name = "syslog"

    def __init__(self, target: SyslogTarget) -> None:
        self._target = target
        self._host = re.sub(r"[^\x21-\x7e]", "_", socket.gethostname())[:255] or "-"
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, chain: Sequence[ChainEntry]) -> None:
        """Send entries. Raises OSError; then all of them are sent again, for TCP does not say what has arrived."""
        known = [entry for entry in chain if entry.record is not None]
        try:
            async with asyncio.timeout(SEND_S):
                if self._target.transport == "udp":
                    await self._datagrams(known)
                else:
                    await self._frames(known)
        except BaseException as error:
            self._close()
            if isinstance(error, TimeoutError):
                where = f"{self._target.host}:{self._target.port}"
                raise OSError(f"the syslog server {where} has accepted nothing for {SEND_S:.0f} s") from None
            raise

    async def _datagrams(self, known: Sequence[ChainEntry]) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=(self._target.host, self._target.port)
        )
        with contextlib.closing(transport):
            for entry in known:
                transport.sendto(syslog_message(entry, self._host, DATAGRAM_BYTES_MAX))
                await asyncio.sleep(DATAGRAM_PAUSE_S)

    async def _frames(self, known: Sequence[ChainEntry]) -> None:
        if self._stream is None or self._stream[0].at_eof():
            self._close()
            async with asyncio.timeout(CONNECT_S):
                self._stream = await asyncio.open_connection(
                    self._target.host, self._target.port, ssl=self._tls(), limit=1024
                )
        _, writer = self._stream
        for entry in known:
            message = syslog_message(entry, self._host)
            writer.write(b"%d %s" % (len(message), message))
        await writer.drain()

    def _tls(self) -> ssl.SSLContext | None:
        if self._target.transport != "tls":
            return None
        return ssl.create_default_context(cafile=self._target.ca)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
        self._stream = None


class OtlpLogs:
    """Sends entries to a collector of OTLP logs."""

    name = "otlp"

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: the whole URL, such as ``https://collector.example.net:4318/v1/logs``; headers and certificates
        as OpenTelemetry's variables (``OTEL_EXPORTER_OTLP_LOGS_HEADERS``, ``..._CERTIFICATE``) say."""
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise InvalidInput(f"{endpoint!r} is not a URL", field="audit-otlp",
                               hint="write it like https://collector.example.net:4318/v1/logs")  # fmt: skip
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # takes 0.1 s to import

        self._endpoint = endpoint
        self._exporter = OTLPLogExporter(endpoint, timeout=SEND_S)
        self._resource = Resource.create({"service.name": "novacron-audit", "service.version": __version__})

    async def send(self, chain: Sequence[ChainEntry]) -> None:
        """Send entries. Raises OSError unless the collector has taken all of them."""
        batch = [self._log(entry, entry.record) for entry in chain if entry.record is not None]
        if batch and await asyncio.to_thread(self._exporter.export, batch) is not LogRecordExportResult.SUCCESS:
            raise OSError(f"the collector at {self._endpoint} does not accept the audit log")

    def _log(self, entry: ChainEntry, record: ChainedRecord) -> ReadableLogRecord:
        done = record.outcome == "done"
        shown: dict[str, str | int | None] = {
            "audit.seq": entry.seq, "audit.hash": entry.hash, "audit.id": record.id, "enduser.id": record.actor,
            "audit.user_id": record.user_id, "audit.token": record.token, "client.address": record.address,
            "http.request.method": record.method, "url.path": record.path, "audit.action": record.action,
            "audit.object": record.object, "audit.name": record.name, "audit.project": record.project,
            "audit.outcome": record.outcome, "http.response.status_code": record.status,
            "audit.request_id": record.request_id,
        }  # fmt: skip
        log = LogRecord(
            timestamp=int(record.at.timestamp() * 1e6) * 1000,
            severity_text="INFO" if done else "WARN",
            severity_number=SeverityNumber.INFO if done else SeverityNumber.WARN,
            body=" ".join(f"{record.actor} {record.action} {record.outcome} {record.detail}".split()),
            attributes={name: value for name, value in shown.items() if value not in (None, "")},
        )
        return ReadableLogRecord(log, self._resource)


def sinks(settings: AuditSettings) -> list[Syslog | OtlpLogs]:
    """Return where the audit log is sent. Raises InvalidInput."""
    there: list[Syslog | OtlpLogs] = []
    if settings.syslog is not None:
        there.append(Syslog(syslog_target(settings.syslog, settings.syslog_ca)))
    elif settings.syslog_ca is not None:
        raise InvalidInput("there is no syslog server", field="audit-syslog-ca", hint="name it with --audit-syslog")
    if settings.otlp is not None:
        there.append(OtlpLogs(settings.otlp))
    return there
