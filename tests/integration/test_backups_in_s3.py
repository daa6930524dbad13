"""Backups of running VMs in object storage: made on one host, restored on the other, proved, deleted and pruned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hosts import lab
from lab.platform import Platform, PlatformOptions, default_cache, open_directory, platform, until
from tests.support.s3 import ADMIN, S3Server
from tests.support.vm_backups import back_up, proof_ended
from tests.support.vms import read_from_disk, shell, wait_until_booted, write_to_disk


@pytest.fixture
def in_bucket(s3_server: S3Server, images: Path, lacks: list[str]) -> Iterator[Platform]:
    """A platform whose nodes keep their repositories in a bucket."""
    with (
        open_directory("nvb-") as directory,
        lab(f"nvb{os.getpid()}", default_cache(), namespaces=not lacks) as hosts,
    ):
        credentials = directory / "s3.ini"
        ADMIN.file(credentials)
        address = f"s3://{s3_server.new_bucket('guests')}/vms?endpoint={s3_server.endpoint}&credentials={credentials}"
        options = PlatformOptions(
            agent=("--backup-dir", address), reachable_ports=(int(s3_server.endpoint.rpartition(":")[2]),)
        )
        with platform(directory / "p", hosts, images, options) as running:
            yield running


@pytest.mark.slow
def test_a_vm_goes_through_a_bucket_and_starts_on_the_other_host(in_bucket: Platform) -> None:
    site = in_bucket
    repository = site.client.create_backup_repository("bucket")
    vm = site.client.create_vm(name="web", image="disk", memory_mib=128, node="host-a")
    wait_until_booted(site, vm)
    vm = site.client.get("vms", vm["id"])
    write_to_disk(site, vm, "first")
    shell(site, vm, "dd if=/dev/urandom of=/dev/vda bs=1M seek=20 count=4 conv=notrunc,fsync 2>/dev/null; echo done")
    first = back_up(site, vm, repository)
    write_to_disk(site, vm, "second")
    second = back_up(site, vm, repository)
    assert second["result"]["mode"] == "incremental" and second["result"]["written_bytes"] < 1 << 20
    site.cli("backup", "verify", second["id"])
    site.client.prove_backup(second["id"], line="tiny guest: ready")
    assert proof_ended(site, second)["proof"]["phase"] == "proved"
    site.cli("backup", "restore", first["id"], "restored", "--node", "host-b")
    restored = site.client.get("vms", "restored")
    wait_until_booted(site, restored)
    assert (restored["node"], read_from_disk(site, restored)) == ("host-b", "first")
    site.cli("backup", "delete", first["id"])
    site.cli("backup", "repository", "prune", "bucket")
    until(
        lambda: any(prune["at"] for prune in site.client.get("backup-repositories", "bucket")["prunes"]), "pruned", 120
    )
    [pruned] = [p for p in site.client.get("backup-repositories", "bucket")["prunes"] if p["at"]]
    assert (pruned["node"], pruned["error"]) == ("host-a", "")
    site.cli("backup", "verify", second["id"])
