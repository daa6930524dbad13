"""Faults of what is done from time to time: backups, drills, keys, and what is watched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from lab.alert_faults.control_plane import bundle
from lab.alert_faults.model import AlertFault, Mending, Scene
from lab.database_sessions import execute
from lab.observers import Exporter
from lab.platform import until

DRILL, KEY = "certificates", "page"
OVERDUE = timedelta(days=36)


@contextlib.contextmanager
def uncovered_vm(scene: Scene) -> Iterator[Mending]:
    """There is a backup policy, and a VM that it does not cover."""
    client = scene.site.client
    repository = client.create_backup_repository("uncovered")["id"]
    policy = client.create_backup_policy("nightly", repository, tags=["no-vm-has-this"])["id"]
    vm = client.create_vm(name="uncovered", image="tiny", memory_mib=128, power="stopped", node="host-a")["id"]
    until(lambda: client.get("vms", vm)["status"]["state"] == "stopped", "the VM is there", 60)
    try:
        yield Mending(answers={"cause-mended": lambda: client.configure_backup_policy(policy, vms=[vm])})
    finally:
        client.delete("backup-policies", policy)
        client.delete("vms", vm)
        until(lambda: vm not in {each["id"] for each in client.list("vms")}, "the VM is deleted", 60)
        until(lambda: not list(client.list("backups")), "its backups are deleted", 60)
        client.delete("backup-repositories", repository)


@contextlib.contextmanager
def failed_drill(scene: Scene) -> Iterator[Mending]:
    _record(scene, timedelta(), "failed", "a certificate ends tomorrow")
    yield Mending()


@contextlib.contextmanager
def overdue_drill(scene: Scene) -> Iterator[Mending]:
    """A drill ran for the last time five weeks ago."""
    execute(scene.site.postgres.url, "DELETE FROM drills")
    _record(scene, OVERDUE, "passed", "")
    yield Mending()


def _record(scene: Scene, ago: timedelta, verdict: str, error: str) -> None:
    ended = datetime.now(UTC) - ago
    scene.site.client.record_drill({
        "drill": DRILL, "verdict": verdict, "started_at": (ended - timedelta(minutes=1)).isoformat(),
        "ended_at": ended.isoformat(), "version": "1", "machine": "here", **({"error": error} if error else {}),
    })  # fmt: skip


def _aged(scene: Scene) -> None:
    """Let the key have been made long ago."""
    execute(
        scene.site.postgres.url, "UPDATE platform_keys SET created_at = now() - interval '400 days' WHERE name = 'page'"
    )


@contextlib.contextmanager
def old_key(scene: Scene) -> Iterator[Mending]:
    _aged(scene)
    yield Mending(_renewal(scene), values={"key": KEY})


@contextlib.contextmanager
def unfinished_rotation(scene: Scene) -> Iterator[Mending]:
    """A key was rotated long ago, and the former one is accepted still."""
    scene.site.cli("key", "rotate", KEY)
    _aged(scene)
    yield Mending(_renewal(scene), values={"key": KEY})


def _renewal(scene: Scene) -> dict[str, Callable[[], object]]:
    def restart() -> None:
        scene.site.server.stop()
        scene.site.server.start()
        scene.site.wait_settled()

    return {"systemctl restart novacron-server": restart}


@contextlib.contextmanager
def stopped_exporter(scene: Scene) -> Iterator[Mending]:
    """What measures the database has ended."""
    site, port = scene.site, scene.exporter.port
    scene.exporter.stop()
    started = list[Exporter]()

    def start() -> None:
        started.append(Exporter(scene.directory, "postgresql", site.postgres.url, port))
        scene.after.callback(started[0].stop)

    try:
        yield Mending(bundle(scene), {"cause-mended": start})
    finally:
        if not started:
            start()


ALL = (
    AlertFault("uncovered-vm", "a VM is covered by no backup policy", ("VMWithoutBackupPolicy",),
               "troubleshooting/vm-backups", uncovered_vm),
    AlertFault("failed-drill", "a drill has failed", ("DrillFailed",), "maintenance/drills", failed_drill,
               {"drill": DRILL}),
    AlertFault("overdue-drill", "a drill was not run for five weeks", ("DrillOverdue",), "maintenance/drills",
               overdue_drill, {"drill": DRILL}),
    AlertFault("old-key", "a key is older than it may be", ("KeyOld",), "maintenance/keys", old_key, {"key": KEY}),
    AlertFault("unfinished-rotation", "a rotation was begun long ago, and not finished", ("KeyRotationUnfinished",),
               "maintenance/keys", unfinished_rotation, {"key": KEY}),
    AlertFault("stopped-exporter", "the exporter of the database has ended", ("ExporterDown",),
               "troubleshooting/api", stopped_exporter, {"job": "postgresql"}),
)  # fmt: skip
