"""An auditor, an owner of the database who edits the log, and a person who wants to be forgotten."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
from typer.testing import CliRunner, Result

from lab.replicas import Served
from novacron.cli.app import app
from tests.integration.conftest import Api
from tests.waiting import until


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


async def tamper(served: Served, record: int, address: str) -> None:
    """Change a record as somebody does who owns the database."""
    connection = await asyncpg.connect(served.postgres.url)
    await connection.execute("ALTER TABLE audit DISABLE TRIGGER stays")
    await connection.execute("UPDATE audit SET address = $2 WHERE id = $1", record, address)
    await connection.execute("ALTER TABLE audit ENABLE TRIGGER stays")
    await connection.close()


def test_the_log_is_verified_online_and_offline_and_an_edit_is_found(served: Served, tmp_path: Path) -> None:
    served.client.create_user("au-ann", password=None)
    served.client.delete("users", "au-ann")
    last = next(served.client.list("audit", limit=1))["id"]

    def all_is_chained() -> bool:
        chained = [entry["record_id"] for entry in served.client.list("audit/entries")]
        return last in chained and bool(list(served.client.list("audit/heads", limit=1)))

    until(all_is_chained, "the record has its place in the chain, and a head is signed")
    good = run("audit", "verify")
    assert good.exit_code == 0 and "nothing was changed" in good.output, good.output
    heads, export = tmp_path / "heads.jsonl", tmp_path / "audit.jsonl"
    assert run("audit", "heads", str(heads)).exit_code == 0 and run("audit", "export", str(export)).exit_code == 0
    assert export.stat().st_mode & 0o777 == 0o600
    offline = run("audit", "verify", str(export), "--heads", str(heads), "-o", "json")
    assert offline.exit_code == 0 and json.loads(offline.output)["vouched"] >= 1, offline.output
    part = run("audit", "verify", "--from", "2", "--to", "3")
    assert part.exit_code == 0 and "entries 2 to 3" in part.output, part.output
    assert run("audit", "verify", "--from", "2001-01-01T00:00:00Z").exit_code == 0
    assert "CHAIN" in run("audit", "chain").output and run("audit", "verify", "--from", "x").exit_code == 2

    asyncio.run(tamper(served, last, "198.51.100.9"))
    try:
        bad = run("audit", "verify", "--heads", str(heads))
        assert bad.exit_code == 1 and f"record {last} was changed" in bad.output, bad.output
    finally:
        before = next(r for r in read_entries(export) if r["record_id"] == last)["record"]["address"]
        asyncio.run(tamper(served, last, before))
    lines = export.read_text().splitlines()
    export.write_text("\n".join([*lines[:-2], lines[-1]]) + "\n")
    shorter = run("audit", "verify", str(export))
    assert shorter.exit_code == 1 and "is missing" in shorter.output
    export.write_text(lines[0][:50])
    assert run("audit", "verify", str(export)).exit_code == 1, "a damaged file is no traceback"


def read_entries(export: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in export.read_text().splitlines())
    return [line["entry"] for line in lines if "entry" in line]


def test_a_person_is_forgotten_and_the_log_still_verifies(served: Served, api: Api) -> None:
    user = served.client.create_user("au-forgotten", password="correct horse battery staple")
    token = served.client.create_token("t", user=user["id"])["secret"]
    assert api("GET", "/api/v1/nodes", token=token).status == 403
    wrong = api("POST", "/api/v1/login", {"user": "au-forgotten", "password": "wrong"}, token=None)
    assert wrong.status == 401
    assert api("POST", "/api/v1/audit/erasures", {"user": "au-forgotten"}, token=token).status == 403
    until(lambda: len(list(served.client.list("audit", object="au-forgotten", outcome="refused"))) >= 1,
          "the wrong password is on record")  # fmt: skip
    erased = run("user", "erase", "au-forgotten", "--yes", "-o", "json")
    assert erased.exit_code == 0, erased.output
    pseudonym = json.loads(erased.output)["pseudonym"]

    async def left() -> list[str]:
        connection = await asyncpg.connect(served.postgres.url)
        rows = [
            f"{table}: {row['text']}"
            for table in ("audit", "audit_links", "events", "users", "api_log", "tokens", "grants")
            for row in await connection.fetch(f"SELECT t::text AS text FROM {table} t")  # noqa: S608
        ]
        await connection.close()
        return [row for row in rows if "au-forgotten" in row]

    assert asyncio.run(left()) == []
    actions = {record["action"] for record in served.client.list("audit", object=pseudonym)}
    assert {"create_user", "login", "erase_user"} <= actions
    verified = run("audit", "verify")
    assert verified.exit_code == 0, verified.output
    assert api("POST", "/api/v1/audit/erasures", {"user": "au-nobody"}).status == 404
