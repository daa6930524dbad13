"""A drill of backups: a repository is lost, and they go on into another one."""

from __future__ import annotations

import shutil

from lab.drills.platforms import small_platform
from lab.drills.recorder import Recorder
from lab.platform import Object, Platform, until

READY = "tiny guest: ready"
ENDED = ("kept", "damaged", "failed")


def repository_lost(run: Recorder) -> None:
    """The directory of a repository is gone: the next backup fails and says why, and another repository takes over."""
    with run.step("a platform of two nodes runs"):
        site = run.enter_context(small_platform(run.directory))
    with run.step("a VM is backed up by a policy"):
        vm = site.client.create_vm(name="drill", image="disk", memory_mib=128, node="host-a")
        until(lambda: READY in site.console_log(vm, "host-a"), "its guest has booted", 90)
        first = site.client.create_backup_repository("drill-first")["id"]
        policy = site.client.create_backup_policy("drill", first, vms=[vm["id"]])["id"]
        site.client.act("backup-policies", policy, "run")
        kept = _ended(site, vm, first)
        assert kept["phase"] == "kept", kept["error"]
    with run.fault("the repository's directory is removed"):
        shutil.rmtree(site.backup_dir / first)
    with run.step("the next backup fails, and says why"):
        site.client.act("backup-policies", policy, "run")
        failed = until(lambda: _failed(site, first), "a backup has failed", 120)
        assert failed["error"], "it does not say why"
    run.detected()
    with run.step("the policy backs up into another repository"):
        second = site.client.create_backup_repository("drill-second")["id"]
        site.client.configure_backup_policy(policy, repository=second)
        site.client.act("backup-policies", policy, "run")
        again = _ended(site, vm, second)
        assert again["phase"] == "kept", again["error"]
    run.recovered()
    with run.step("the new backup can be read back"):
        site.client.act("backups", again["id"], "verify")
        until(lambda: site.client.get("backups", again["id"])["verified_at"], "it is verified", 120)


def _ended(site: Platform, vm: Object, repository: str) -> Object:
    """Return the VM's first backup into a repository once it has ended."""

    def ended() -> Object | None:
        backups = site.client.list("backups", vm=vm["id"], repository=repository)
        return next((each for each in backups if each["phase"] in ENDED), None)

    backup: Object = until(ended, "a backup has ended", 120)
    return backup


def _failed(site: Platform, repository: str) -> Object | None:
    backups = site.client.list("backups", repository=repository)
    return next((backup for backup in backups if backup["phase"] == "failed"), None)
