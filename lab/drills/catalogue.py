"""All drills of the lab, with what they promise. A further one is a function and an entry here."""

from __future__ import annotations

from lab.drills import backups, certificates, database, machines, nodes, servers
from lab.drills.model import LabDrill
from novacron.model.drill import DrillEvery, DrillFigures

ALL = (
    LabDrill(
        "database-killed",
        "PostgreSQL is killed, and started by its runbook",
        DrillEvery.MONTHLY,
        DrillFigures(detect_s=10, recover_s=60, loss_s=0),
        database.killed,
        120,
        "incidents/database-issues",
    ),
    LabDrill(
        "database-restored",
        "the database's files are gone; its runbook restores the newest backup, and the WAL after it",
        DrillEvery.MONTHLY,
        DrillFigures(recover_s=300, loss_s=60),
        database.restored,
        600,
        "disaster-recovery/database-failure",
    ),
    LabDrill(
        "point-in-time",
        "a project is deleted by mistake; the database goes back to the second before",
        DrillEvery.QUARTERLY,
        DrillFigures(recover_s=300, loss_s=10),
        database.to_a_point_in_time,
        600,
        "maintenance/restore",
    ),
    LabDrill(
        "service-failover",
        "a server of two is killed; the other one answers and leads all controllers",
        DrillEvery.MONTHLY,
        DrillFigures(recover_s=30, loss_s=0),
        servers.failover,
        180,
    ),
    LabDrill(
        "server-lost",
        "the server's machine is gone, the database is not; a server on another machine takes over",
        DrillEvery.QUARTERLY,
        DrillFigures(recover_s=120, loss_s=0),
        machines.server_lost,
        300,
        "disaster-recovery/service-failure",
    ),
    LabDrill(
        "server-and-database-lost",
        "the server's machine is gone with the database; keys, password and repository are left",
        DrillEvery.YEARLY,
        DrillFigures(recover_s=300, loss_s=60),
        machines.server_and_database_lost,
        600,
        "disaster-recovery/complete-recovery",
    ),
    LabDrill(
        "node-lost",
        "a node loses power; its highly available VM starts elsewhere",
        DrillEvery.QUARTERLY,
        DrillFigures(detect_s=30, recover_s=60),
        nodes.lost,
        300,
        needs_guest=True,
    ),
    LabDrill(
        "repository-lost",
        "a repository of backups is gone; the next backup says so, and another repository takes over",
        DrillEvery.QUARTERLY,
        DrillFigures(detect_s=120, recover_s=120),
        backups.repository_lost,
        420,
        needs_guest=True,
    ),
    LabDrill(
        "certificate-expired",
        "a node's certificate has ended while it was away; the node rejoins",
        DrillEvery.QUARTERLY,
        DrillFigures(detect_s=60, recover_s=60),
        certificates.expired,
        240,
    ),
    LabDrill(
        "disk-full",
        "the disk under a node is full; its VM runs on, and its runbook takes it elsewhere",
        DrillEvery.QUARTERLY,
        DrillFigures(detect_s=60, recover_s=120, loss_s=0),
        nodes.full,
        420,
        "incidents/node-unhealthy",
        needs_guest=True,
        needs_root=True,
    ),
)
NAMES = tuple(drill.name for drill in ALL)
