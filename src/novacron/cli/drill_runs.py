"""Drills that an installation runs on itself: each looks, or makes what it throws away, and says what it measured."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from novacron import __version__
from novacron.cli import command_check
from novacron.cli.output import Object
from novacron.client import ApiError, Client
from novacron.client.choices import DrillName, DrillVerdict
from novacron.runbooks import library
from novacron.runbooks.command_lines import filled
from novacron.runbooks.model import Runbook, RunbookError
from novacron.runbooks.programs import execute_here
from novacron.terminal import say

STEPS_MAX = 100
SAID_MAX = 500
SAID_BYTES_MAX = 4096
ERROR_MAX = 2000
DAY_S = 86_400.0
REHEARSAL_S_MAX = 4 * 3600.0
CONNECT_S_MAX = 10.0
GONE_S_MAX = 120.0
PLACEHOLDER_KEY = "page"
"""A key that there is: the value of runbooks that names one."""
SETTINGS_FILE = "/dev/null"
"""Stands for files that runbooks name and that are not here."""


class DrillFailed(Exception):
    """A drill did not show what it has to show: says what, and what to do."""


@dataclasses.dataclass(frozen=True)
class DrillHow:
    """What runs are asked to do."""

    repository: str = ""
    state_dir: str = ""
    scratch: str = ""
    vms: int = 3
    min_days: int = 7
    proof_s_max: float = 3600.0
    recover_promised_s: float = 3600.0
    loss_promised_s: float = 60.0
    commands: Any = None
    """All commands of the program, which runbooks are compared with: click's, which Typer brings in its own copy."""


class DrillRecorder:
    """Times steps, and keeps what was measured."""

    def __init__(self) -> None:
        self.steps: list[Object] = []
        self.measured: Object = {}
        self.promised: Object = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time what the block does; what it appends to the list is said of it."""
        said, began, passed = list[str](), time.monotonic(), False
        try:
            yield said
            passed = True
        except Exception as error:
            said.append(str(error))
            raise
        finally:
            took_s = round(time.monotonic() - began, 3)
            if len(self.steps) < STEPS_MAX:
                text = "; ".join(said)[:SAID_MAX]
                self.steps.append({"name": name[:120], "took_s": took_s, "passed": passed, "said": text})
            say(f"  {'ok ' if passed else 'BAD'} {took_s:8.2f} s  {name}" + (f": {said[-1]}" if said else ""), err=True)

    def missed(self) -> list[str]:
        """Return the promises that were not kept."""
        return [
            f"{field} is {self.measured[field]:.1f} s, and {promise:.0f} s are promised"
            for field, promise in self.promised.items()
            if self.measured.get(field, 0.0) > promise
        ]


def run(name: DrillName, client: Client, how: DrillHow) -> Object:
    """Run a drill; return the body of ``POST /api/v1/drills``. Raises Unreachable: nothing can be said then."""
    recorder, began = DrillRecorder(), datetime.now(UTC)
    error = ""
    try:
        DRILLS[name](recorder, client, how)
        error = "; ".join(recorder.missed())
    except (DrillFailed, RunbookError, ApiError, OSError, TimeoutError) as failure:
        error = str(failure) or type(failure).__name__
    except (ValueError, LookupError, TypeError) as failure:  # an answer that is not as it should be: that is recorded
        error = f"unexpected answer: {type(failure).__name__}: {failure}"
    return {
        "drill": name.value,
        "verdict": (DrillVerdict.FAILED if error else DrillVerdict.PASSED).value,
        "started_at": began.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
        "version": __version__,
        "machine": socket.gethostname()[:120] or "unknown",
        "measured": recorder.measured,
        "promised": recorder.promised,
        "steps": recorder.steps,
        "error": error[:ERROR_MAX],
    }


def _database_restore(recorder: DrillRecorder, client: Client, how: DrillHow) -> None:
    if not how.repository:
        raise DrillFailed("no repository was given: name the repository of the database's backups with --repository")
    options = {"--state-dir": how.state_dir, "--scratch": how.scratch}
    more = [word for option, value in options.items() if value for word in (option, value)]
    words = ("novacron", "database", "rehearse", "--repository", how.repository, "--output", "json", *more)
    recorder.promised |= {"recover_s": how.recover_promised_s, "loss_s": how.loss_promised_s}
    with recorder.step("restore into a scratch database, look at it, throw it away") as said:
        measured, text = rehearsed(_answer(words))
        recorder.measured |= measured
        said.append(text)


def _answer(words: tuple[str, ...]) -> str:
    """Run a command of NovaCron and return what it prints, without its errors. Raises DrillFailed with those."""
    with tempfile.TemporaryFile() as errors:
        result = execute_here(words, REHEARSAL_S_MAX, lambda line: None, errors)
        errors.seek(max(errors.seek(0, io.SEEK_END) - SAID_BYTES_MAX, 0))
        lines = errors.read().decode(errors="replace").strip().splitlines() or ["it ended without a word"]
    if result.timed_out:
        raise DrillFailed(f"it took longer than {REHEARSAL_S_MAX / 3600:.0f} h and was stopped")
    if result.exit_code != 0:
        raise DrillFailed(lines[-1].removeprefix("error: "))
    return result.output


def rehearsed(answer: str) -> tuple[dict[str, float], str]:
    """Return what ``novacron database rehearse`` measured, and what is said of it. Raises DrillFailed."""
    try:
        rehearsal = json.loads(answer)
        measured = {field: round(float(rehearsal[field]), 2) for field in ("recover_s", "loss_s")}
        tables = {str(name): int(rows) for name, rows in dict(rehearsal["tables"]).items()}
        return measured, (
            f"backup {rehearsal['backup'][:8]}, version {rehearsal['schema_version']} of the schema, {len(tables)}"
            f" tables, {sum(tables.values())} rows, marks of {rehearsal['marks']} servers"
        )
    except (ValueError, LookupError, TypeError) as error:
        raise DrillFailed(
            f"novacron database rehearse printed output that this version does not understand ({type(error).__name__}:"
            f" {error}): {answer.strip()[:SAID_MAX] or 'nothing'}; run it by hand"
        ) from None


def _backup_proofs(recorder: DrillRecorder, client: Client, how: DrillHow) -> None:
    with recorder.step("choose backups") as said:
        chosen = to_prove(list(client.list("backups")), how.vms)
        if not chosen:
            raise DrillFailed("no backup of a VM is kept: see novacron backup list")
        said.append(", ".join(f"{backup['id']} of {backup['vm_name']}" for backup in chosen))
    recorder.promised["recover_s"] = how.recover_promised_s
    failed = list[str]()
    for backup in chosen:
        try:
            _prove(recorder, client, backup, how.proof_s_max)
        except (DrillFailed, ApiError, TimeoutError) as error:  # of this VM: the others are tried too
            failed.append(f"{backup['vm_name']}: {error}")
    if failed:
        raise DrillFailed("; ".join(failed))


def to_prove(backups: list[Object], count: int) -> list[Object]:
    """Return the newest backup of each VM, those first that were proved never or longest ago."""
    newest = dict[str, Object]()
    for backup in sorted(backups, key=lambda each: str(each["created_at"])):
        if backup["phase"] == "kept":
            newest[backup["vm"]] = backup
    return sorted(newest.values(), key=lambda each: (each["proof"] or {}).get("since") or "")[:count]


def _prove(recorder: DrillRecorder, client: Client, backup: Object, limit_s: float) -> None:
    with recorder.step(f"start a VM made of {backup['id']}, of {backup['vm_name']}") as said:
        began = time.monotonic()
        client.prove_backup(backup["id"])
        ended = client.wait(
            "backups", backup["id"], lambda now: now is None or now["proof"]["phase"] in ("proved", "failed"), limit_s
        )
        if ended is None:
            raise DrillFailed("the backup was deleted meanwhile")
        if ended["proof"]["phase"] == "failed":
            raise DrillFailed(ended["proof"]["error"])
        took_s = time.monotonic() - began
        recorder.measured["recover_s"] = round(max(took_s, recorder.measured.get("recover_s", 0.0)), 2)
        said.append(str(ended["proof"]["answer"]))
    with recorder.step(f"the VM made of {backup['id']} is gone"):
        for vm in [vm for vm in client.list("vms") if vm.get("proof_of") == backup["id"]]:
            client.wait("vms", vm["id"], lambda now: now is None, GONE_S_MAX)


def _runbooks(recorder: DrillRecorder, client: Client, how: DrillHow) -> None:
    wrong = list[str]()
    with recorder.step("look at each command of each runbook") as said:
        count = 0
        for name in library.names():
            try:
                runbook = library.read(name)
            except RunbookError as error:
                wrong.append(f"{name}: {error}")
                continue
            for words in commands_of(runbook):
                count += 1
                try:
                    with contextlib.redirect_stderr(io.StringIO()):
                        command_check.check(how.commands, words)
                except (Exception, SystemExit) as error:  # whatever the parser raises: the page is wrong
                    wrong.append(f"{name}: novacron {' '.join(words)}: {getattr(error, 'message', None) or error}")
        if wrong:
            raise DrillFailed("; ".join(wrong))
        said.append(f"{count} commands of {len(library.names())} runbooks exist")


def commands_of(runbook: Runbook) -> Iterator[list[str]]:
    """Yield the command lines of ``novacron`` on a page, with names for its values."""
    values = {name: value.default or "any-name" for name, value in runbook.front.values.items()}
    values |= {"key": PLACEHOLDER_KEY} if "key" in values else {}
    for step in runbook.steps:
        for command in step.commands:
            words = filled(command.words, values)
            if words[0] == "novacron":
                yield [SETTINGS_FILE if word.startswith("/etc/novacron/") else word for word in words[1:]]


def _certificates(recorder: DrillRecorder, client: Client, how: DrillHow) -> None:
    ends, now_s = dict[str, float](), time.time()
    with recorder.step("the server's certificate, and the authority's") as said:
        ends |= _of_server(client)
        said += [f"{what} ends in {(at_s - now_s) / DAY_S:.0f} days" for what, at_s in ends.items()]
    with recorder.step("certificates of nodes") as said:
        nodes = {node["name"]: node["status"]["certificate_ends_at_s"] for node in client.list("nodes")}
        ends |= {f"node {name}": at_s for name, at_s in nodes.items() if at_s}
        said.append(f"{len(nodes)} nodes")
    soon = {what: (at_s - now_s) / DAY_S for what, at_s in ends.items() if at_s - now_s < how.min_days * DAY_S}
    if soon:
        words = [f"{what} ends in {days:.1f} days" for what, days in sorted(soon.items(), key=lambda item: item[1])]
        raise DrillFailed(f"{'; '.join(words)}: see novacron runbook show maintenance/keys")


def _of_server(client: Client) -> dict[str, float]:
    """Return when the certificates end that the API shows and that this context trusts, in seconds since 1970."""
    address = urlsplit(client.config.url)
    context = ssl.create_default_context(cadata=client.config.ca or None)
    host = address.hostname or "localhost"
    with (
        socket.create_connection((host, address.port or 443), timeout=CONNECT_S_MAX) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        shown = connection.getpeercert() or {}
    ends = {"the server's certificate": str(shown.get("notAfter", ""))}
    if client.config.ca:
        authorities = enumerate(context.get_ca_certs(), 1)
        ends |= {f"authority {number}": str(each.get("notAfter", "")) for number, each in authorities}
    return {what: float(ssl.cert_time_to_seconds(text)) for what, text in ends.items() if text}


DRILLS: dict[DrillName, Callable[[DrillRecorder, Client, DrillHow], None]] = {
    DrillName.DATABASE_RESTORE: _database_restore,
    DrillName.BACKUP_PROOFS: _backup_proofs,
    DrillName.RUNBOOKS: _runbooks,
    DrillName.CERTIFICATES: _certificates,
}
