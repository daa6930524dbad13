"""Repositories and backups of VMs, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from lab.platform import Platform, until
from novacron.client import ApiError
from tests.support.vms import Object

NewRepository = Callable[[], Object]


@pytest.fixture
def new_repository(site: Platform, new_name: Callable[[], str]) -> Iterator[NewRepository]:
    """Create repositories; they and their backups are deleted afterwards."""
    ids: list[str] = []

    def create() -> Object:
        created = site.client.create_backup_repository(new_name())
        ids.append(created["id"])
        return created

    yield create
    for id in ids:
        for path in (site.backup_dir / id).rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        for backup in list(site.client.list("backups", repository=id)):
            with contextlib.suppress(ApiError):
                site.client.delete("backups", backup["id"])
        until(lambda id=id: not list(site.client.list("backups", repository=id)), "its backups are gone", 60)  # type: ignore[misc]
        site.client.delete("backup-repositories", id)


def ended(site: Platform, backup: Object) -> Object:
    done = site.client.wait(
        "backups", backup["id"], lambda now: now is None or now["phase"] in ("kept", "damaged", "failed"), 120
    )
    assert done is not None
    return done


def back_up(site: Platform, vm: Object, repository: Object) -> Object:
    """Back a VM up, and return the backup once it is kept."""
    done = ended(site, site.client.back_up_vm(vm["id"], repository["id"]))
    assert (done["phase"], done["error"]) == ("kept", "")
    return done


def vms_for_proofs(site: Platform, backup: Object | None = None) -> list[Object]:
    """Return the VMs that were made to prove backups, or this one."""
    every = [vm for vm in site.client.list("vms") if vm["proof_of"]]
    return every if backup is None else [vm for vm in every if vm["proof_of"] == backup["id"]]


def proof_ended(site: Platform, backup: Object) -> Object:
    """Return a backup once its proof has ended."""
    done = site.client.wait(
        "backups", backup["id"], lambda now: now is None or now["proof"]["phase"] in ("proved", "failed"), 240
    )
    assert done is not None
    return done
