"""Logs: whole lines from several processes at once, without secrets, and without blocking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from novacron.telemetry import logs

COUNT = 3000
NOISY = f"""
import sys
from novacron.telemetry import logs
logs.set_up(sys.argv[1])
log = logs.get("t")
for number in range({COUNT}):
    log.info("line", number=number, pad="x" * (number % 700))
"""


def run(code: str, *arguments: str, **environment: str) -> list[Any]:
    """Return the lines that a program logs."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, **environment}, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_processes_that_share_a_pipe_lose_and_mix_no_log_lines() -> None:
    reading, writing = os.pipe()
    names = ("one", "two", "three")
    processes = [subprocess.Popen([sys.executable, "-c", NOISY, name], stdout=writing) for name in names]
    os.close(writing)
    with os.fdopen(reading) as lines:
        entries = [json.loads(line) for line in lines]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    for name in names:
        assert [entry["number"] for entry in entries if entry["component"] == name] == list(range(COUNT))


def test_a_sink_that_does_not_read_costs_lines_and_no_time() -> None:
    reading, writing = os.pipe()
    code = (
        "import sys, time\n"
        "from novacron.telemetry import logs\n"
        "from novacron.telemetry.values import counter\n"
        "logs.set_up('stuck')\n"
        "began = time.monotonic()\n"
        "for number in range(logs.WAITING_MAX + 5000):\n"
        "    logs.get('t').info('line', number=number)\n"
        "took = time.monotonic() - began\n"
        "dropped = counter('novacron_logs_lines_total').cell('dropped')[0]\n"
        "print(took, dropped, file=sys.stderr)\n"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    began = time.monotonic()
    _, said = done.communicate(timeout=60)
    os.close(reading)
    took_s, dropped = map(float, said.split()[:2])
    assert dropped >= 3000, "more than can wait, and than a pipe holds"
    assert took_s < 10 and time.monotonic() - began < took_s + logs.CLOSE_S_MAX + 10


def test_lines_for_a_closed_sink_are_counted() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys\n"
        "from novacron.telemetry import logs\n"
        "from novacron.telemetry.values import counter\n"
        "logs.set_up('gone')\n"
        "logs.get('t').info('line')\n"
        "logs._lines().flush()\n"
        "print(counter('novacron_logs_lines_total').cell('lost')[0], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(writing)
    assert float(done.stderr.split()[0]) == 1


def test_a_line_has_a_limit_and_stays_json() -> None:
    code = (
        "from novacron.telemetry import logs\n"
        "logs.set_up('t')\n"
        "log = logs.get('t')\n"
        "log.info('long', text='a' * 100_000 + 'z')\n"
        "log.info('many', **{f'field{n}': 'b' * 500 for n in range(100)})\n"
        "def deep(n):\n"
        "    if n == 0: raise ValueError('the cause ' + 'c' * 5000 + ' of it')\n"
        "    deep(n - 1)\n"
        "try:\n    deep(50)\n"
        "except ValueError:\n    log.exception('failed')\n"
    )
    long, many, failed = run(code)
    assert long["text"].startswith("aaa") and long["text"].endswith("aaz") and "[...]" in long["text"]
    assert many["event"] == "many" and many["cut"]
    assert failed["exception"].startswith("Traceback") and failed["exception"].endswith(" of it")
    for line in (long, many, failed):
        assert len(json.dumps(line).encode()) < logs.LINE_BYTES_MAX


@pytest.mark.parametrize(
    "text",
    [
        "token nva_AbCdEf0123456789-_x is wrong", "join with nvj_eyJhIjoxfQ.abc", "Authorization: Bearer abcdefghijkl",
        "postgresql://nova:sesame@db/novacron", "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----",
        "redis://:sesame@cache:6379/0",
    ],
)  # fmt: skip
def test_secrets_are_hidden_anywhere_in_a_text(text: str) -> None:
    hidden = logs.redacted(text)
    assert logs.HIDDEN in hidden
    for secret in ("nva_AbC", "nvj_ey", "abcdefghijkl", "sesame", "MII"):
        assert secret not in hidden


def test_text_without_secrets_is_shown_unchanged() -> None:
    for text in ("https://host:7443/api/v1/vms", "vm-3kdtzn3sayd7ehlw", "bearer of news", "10.0.0.1:7445"):
        assert logs.redacted(text) == text


def test_secrets_are_hidden_in_fields_and_in_tracebacks() -> None:
    code = (
        "import logging\n"
        "from novacron.telemetry import logs\n"
        "logs.set_up('t')\n"
        "log = logs.get('t')\n"
        "log.info('one', password='sesame', nested={'api_key': 'sesame', 'plain': 'shown'}, page_key=b'sesame')\n"
        "try:\n    raise OSError('can not reach postgresql://u:sesame@db/x')\n"
        "except OSError:\n    log.exception('two')\n"
        "logging.getLogger('library').warning('with %s', 'Bearer sesamesesame')\n"
    )
    entries = run(code)
    assert "sesame" not in json.dumps(entries) and entries[0]["nested"]["plain"] == "shown"
    assert [entry["event"] for entry in entries] == ["one", "two", "with [hidden]"]


def test_the_level_changes_while_a_process_runs(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from novacron.telemetry import logs\n"
        "logs.set_up('t', 'warning')\n"
        "log = logs.get('t')\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "def tell(level):\n"
        "    file.with_suffix('.new').write_text(level)\n"
        "    file.with_suffix('.new').rename(file)\n"
        "async def main():\n"
        "    task = asyncio.create_task(logs.follow(file, 'warning'))\n"
        "    log.info('before')\n"
        "    tell('debug')\n"
        "    while logs.level() != 'debug': await asyncio.sleep(0.01)\n"
        "    log.debug('during')\n"
        "    tell('loud')\n"
        "    while file.exists(): await asyncio.sleep(0.01)\n"
        "    while logs.level() != 'warning': await asyncio.sleep(0.01)\n"
        "    log.info('after')\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    events = [entry["event"] for entry in run(code, str(tmp_path / "level"))]
    assert "during" in events and "before" not in events and "after" not in events
    assert "the log level can't be changed" in events


def test_a_log_line_has_its_trace_id_and_bound_fields() -> None:
    code = (
        "from novacron.telemetry import logs, traces\n"
        "logs.set_up('t')\n"
        "traces.set_up('t', 'here', {})\n"
        "with logs.bound(vm='vm-1', project='p'), traces.span('work'):\n"
        "    logs.get('t').info('inside')\n"
        "logs.get('t').info('outside')\n"
    )
    inside, outside = run(code)
    assert len(inside["trace_id"]) == 32 and len(inside["span_id"]) == 16
    assert inside["vm"] == "vm-1" and inside["project"] == "p"
    assert "trace_id" not in outside and "vm" not in outside


def test_an_unknown_log_level_becomes_info_with_a_warning() -> None:
    said, shown = run("from novacron.telemetry import logs\nlogs.set_up('t', 'loud')\nlogs.get('t').info('shown')\n")
    assert said["found"] == "loud" and said["level"] == "warning" and shown["event"] == "shown"
