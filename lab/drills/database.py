"""Drills of the platform's database: it ends, its files are gone, somebody deletes what was needed."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from lab.drills.installation import Installation, installed
from lab.drills.recorder import Recorder
from lab.platform import until
from lab.replicas import serving
from lab.runbook_runs import Actions, lab_host, lab_server

NOTICED_S_MAX = 60.0
APART_S = 1.5
"""Between what is to stay and what is to be undone: a time of choice has whole seconds."""


def killed(run: Recorder) -> None:
    """PostgreSQL ends without warning, and is started by its runbook."""
    with run.step("an installation runs"):
        served = run.enter_context(serving())
        served.client.create_project("drill-before")
    begun: list[str] = []
    actions: Actions = {
        "systemctl start postgresql": lambda: begun.append(served.postgres.start()),
        "pg_isready": lambda: "accepting connections" if begun else "no response",
    }
    with run.fault("PostgreSQL is killed"):
        served.postgres.kill()
    with run.step("the server says that it is not ready"):
        until(lambda: not served.replicas[0].is_ready(), "the server is not ready", NOTICED_S_MAX)
    run.detected()
    run.run_runbook(lab_host(actions))
    with run.step("a change is accepted"):
        until(served.replicas[0].is_ready, "the server is ready", NOTICED_S_MAX)
        served.client.create_project("drill-after")
    run.recovered()
    names = {project["name"] for project in served.client.list("projects")}
    assert "drill-before" in names, "what was accepted before is lost"
    run.loss_s = 0.0
    run.record_history()


def restored(run: Recorder) -> None:
    """The files of the database are gone; the newest backup and the WAL after it take their place."""
    with run.step("an installation runs, and its database is archived"):
        site = run.enter_context(installed(run.directory))
    with run.step("changes are accepted, and the first ones are archived"):
        last = site.write_for_a_while()
    with run.fault("server and PostgreSQL are killed, the database's files are removed"):
        lost_at = datetime.now(UTC)
        site.lose_database()
    run.run_runbook(lab_server(site.actions()), {"repository": str(site.repository)})
    run.recovered()
    with run.step("what is there is compared with what was accepted"):
        kept = site.written_at()
        assert "drill-first" in kept, "what was archived is lost"
        newest = max(kept.values())
        run.loss_s = 0.0 if newest >= last else (lost_at - newest).total_seconds()
        site.write("drill-after")
    run.record_history()


def to_a_point_in_time(run: Recorder) -> None:
    """Somebody deletes a project by mistake; the database goes back to the second before."""
    with run.step("an installation runs, and its database is archived"):
        site = run.enter_context(installed(run.directory))
    with run.step("what is needed later is accepted"):
        site.wait_archived(datetime.now(UTC))
        site.write("drill-needed")
        wait_s(APART_S)
    before = datetime.now(UTC).replace(microsecond=0)
    wait_s(APART_S)
    with run.fault("a project is deleted by mistake"):
        mistake_at = datetime.now(UTC)
        site.client.delete("projects", "drill-needed")
    assert "drill-needed" not in site.written_at()
    with run.step("the mistake is archived"):
        site.wait_archived(mistake_at)
    _back_to(run, site, before)
    run.recovered()
    assert "drill-needed" in site.written_at(), "it did not come back"
    run.loss_s = (mistake_at - before).total_seconds()


def _back_to(run: Recorder, site: Installation, target: datetime) -> None:
    """Restore to a time by hand, as the runbook says, and go on with it from there."""
    with run.step(f"the database is restored as it was at {target:%H:%M:%S} UTC"):
        site.server.stop()
        said = site.database("restore", "--to", f"{target:%Y-%m-%d %H:%M:%S}", "--yes")
        assert "is in place" in said, said
    run.run_runbook(lab_server(site.actions()), {"repository": str(site.repository)}, begin="start")


def wait_s(seconds: float) -> None:
    """Let time pass that is itself what is drilled."""
    time.sleep(seconds)
