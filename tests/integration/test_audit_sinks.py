"""The audit log is sent to a syslog server, over TCP, TLS and UDP, and to a collector of OTLP logs."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from lab import observers
from novacron import pki
from novacron.audit_chain import entries
from novacron.audit_chain.entries import ChainedRecord, ChainEntry
from novacron.model.errors import InvalidInput
from novacron.server.audit_sinks import OtlpLogs, Syslog, SyslogTarget, sinks, syslog_message, syslog_target
from novacron.server.settings import AuditSettings
from tests.waiting import eventually

RECORD = ChainedRecord(
    id=7, at=datetime(2026, 11, 27, 8, 0, 0, 123456, tzinfo=UTC), actor="ann", user_id="user-1", token=None,
    address="192.0.2.7", method="DELETE", path='/api/v1/vms/a"]b', action="delete_vm", object="vm-1", name="db",
    project=None, outcome="refused", status=403, detail="ann may not\nwrite", request_id="r7",
)  # fmt: skip
ENTRY = entries.append(41, entries.genesis("chain"), RECORD)
LONG = msgspec.structs.replace(ENTRY, record=msgspec.structs.replace(RECORD, path="/ä" * 250, detail="ö" * 300))
SYSLOG = re.compile(
    rb"<(\d+)>1 (\S+) (\S+) (\S+) (\d+) (\S+) \[audit@32473((?: \w+=\"(?:[^\"\\\]]|\\[\"\\\]])*\")*)\] (.*)"
)


def test_a_message_is_as_rfc_5424_has_it() -> None:
    match = SYSLOG.fullmatch(syslog_message(ENTRY, "host-a"))
    assert match is not None
    priority, at, host, daemon, _, action, data, text = match.groups()
    assert (priority, at, host, daemon, action) == (
        b"108", b"2026-11-27T08:00:00.123456Z", b"host-a", b"novacron", b"delete_vm",
    )  # fmt: skip
    assert b'seq="42"' in data and rb'path="/api/v1/vms/a\"\]b"' in data and b"token=" not in data
    assert f'hash="{ENTRY.hash}"'.encode() in data
    assert text == b"ann delete_vm db refused ann may not write", "on one line"


def test_a_datagram_is_no_longer_than_receivers_take() -> None:
    assert len(syslog_message(LONG, "host-a")) > 2048 // 2
    cut = syslog_message(LONG, "host-a", 1000)
    assert len(cut) <= 1000 and SYSLOG.fullmatch(cut)


@pytest.mark.parametrize("url", ["logs", "http://logs", "tls://", "tcp://logs:0x", "udp://logs/path"])
def test_what_is_no_syslog_server_is_refused_with_its_option(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        syslog_target(url, None)
    assert refused.value.field == "audit-syslog" and refused.value.hint


def test_options_name_the_sinks() -> None:
    assert [sink.name for sink in sinks(AuditSettings(syslog="tcp://logs", otlp="http://c/v1/logs"))] == [
        "syslog", "otlp",
    ]  # fmt: skip
    assert not sinks(AuditSettings())
    assert syslog_target("tls://[2001:db8::1]", None) == SyslogTarget("tls", "2001:db8::1", 6514)
    with pytest.raises(InvalidInput, match="there is no syslog server"):
        sinks(AuditSettings(syslog_ca=Path("ca.crt")))


class Receiver:
    """A syslog server over TCP or TLS: reads each message after its length."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                length = int(await reader.readuntil(b" "))
                self.messages.append(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_syslog_server_gets_every_entry_also_after_the_connection_was_lost(
    transport: str, tmp_path: Path
) -> None:
    receiver, tls = Receiver(), None
    if transport == "tls":
        certificate, key = pki.Authority.open(tmp_path).issue_server(tmp_path, ["127.0.0.1"])
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    sink = Syslog(SyslogTarget(transport, "127.0.0.1", port, tmp_path / "ca.crt" if tls else None))
    await sink.send([ENTRY, LONG])
    await eventually(lambda: len(receiver.messages) == 2, "they have arrived")
    assert receiver.messages[0] == syslog_message(ENTRY, sink._host)
    receiver.writers[0].close()
    stream = sink._stream
    assert stream is not None
    await eventually(lambda: stream[0].at_eof(), "the sink has seen that it was closed")
    await sink.send([ENTRY])
    await eventually(lambda: len(receiver.messages) == 3, "over another connection")
    if tls is not None:
        stranger = Syslog(SyslogTarget("tls", "127.0.0.1", port))
        with pytest.raises(ssl.SSLCertVerificationError):
            await stranger.send([ENTRY])
    sink._close()
    server.close()
    with pytest.raises(OSError, match=r"."):
        await Syslog(SyslogTarget("tcp", "127.0.0.1", port)).send([ENTRY])


async def test_datagrams_are_sent_within_their_limit() -> None:
    received: list[bytes] = []

    class Datagrams(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            received.append(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    await Syslog(SyslogTarget("udp", "127.0.0.1", port)).send([ENTRY, LONG])
    await eventually(lambda: len(received) == 2, "they have arrived")
    transport.close()
    assert all(len(datagram) <= 2048 and SYSLOG.fullmatch(datagram) for datagram in received)


async def test_a_collector_gets_each_entry_as_a_log_record_and_one_that_refuses_gets_it_again() -> None:
    requests: list[ExportLogsServiceRequest] = []
    status = 400

    def taken(path: str, headers: Mapping[str, str], body: bytes) -> int:
        assert path == "/v1/logs" and headers["content-type"] == "application/x-protobuf"
        request = ExportLogsServiceRequest()
        request.ParseFromString(body)
        requests.append(request)
        return status

    with observers.serving(0, taken) as url, pytest.raises(OSError, match="does not accept"):
        await OtlpLogs(f"{url}/v1/logs").send([ENTRY])
    status = 200
    with observers.serving(0, taken) as url:
        await OtlpLogs(f"{url}/v1/logs").send([ENTRY, LONG])
    logs: list[Any] = list(requests[-1].resource_logs[0].scope_logs[0].log_records)
    assert len(logs) == 2
    attributes = {each.key: each.value for each in logs[0].attributes}
    assert attributes["audit.seq"].int_value == 42 and attributes["audit.action"].string_value == "delete_vm"
    assert logs[0].severity_text == "WARN" and logs[0].time_unix_nano == 1795766400123456000


def unchained(entry: ChainEntry) -> ChainEntry:
    return msgspec.structs.replace(entry, record=None)


async def test_a_record_that_is_gone_is_not_sent_and_holds_nothing_up() -> None:
    await Syslog(SyslogTarget("udp", "127.0.0.1", 9)).send([unchained(ENTRY)])
