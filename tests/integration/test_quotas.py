"""Quotas of projects hold, and what counts towards them is what exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Answer, Api
from tests.integration.test_access import OFF, is_deleted


@pytest.fixture
def limited(site: Platform) -> Iterator[Callable[..., None]]:
    """Give project ``acc-quota`` these limits."""
    client = site.client
    client.create_project("acc-quota", host_network=True)

    def set_(**quota: int) -> None:
        client.configure_project("acc-quota", quota=quota)

    yield set_
    for vm in list(client.list("vms", project="acc-quota")):
        client.delete("vms", vm["id"])
    for network in list(client.list("networks", project="acc-quota")):
        client.request("DELETE", f"/api/v1/networks/{network['name']}")
    until(lambda: not list(client.list("vms", project="acc-quota")), "its VMs are gone")
    until(lambda: is_deleted(client, "acc-quota"), "the project is gone")


def test_concurrent_requests_do_not_overrun_a_quota(api: Api, limited: Callable[..., None]) -> None:
    limited(vms=7, memory_mib=1024)

    def create(number: int) -> Answer:
        return api("POST", "/api/v1/vms?project=acc-quota", {"name": f"q{number}", **OFF})

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(create, range(30)))
    assert sorted(answer.status for answer in answers) == [201] * 7 + [403] * 23
    refused = next(answer for answer in answers if answer.status == 403)
    assert (refused.problem["code"], refused.problem["field"]) == ("quota-exceeded", "vms")
    assert api("GET", "/api/v1/projects/acc-quota/usage").body["usage"] == {
        "vms": 7, "vcpus": 7, "memory_mib": 448, "disk_mib": 0, "snapshots": 0, "snapshot_mib": 0, "images": 0,
        "image_mib": 0, "backups": 0, "backup_mib": 0, "networks": 0, "forwards": 0, "migrations": 0,
    }  # fmt: skip
    created = next(answer for answer in answers if answer.status == 201).body
    grown = api("PATCH", f"/api/v1/vms/{created['id']}", {"memory_mib": 1000})
    assert grown.status == 403 and grown.problem["field"] == "memory_mib"
    limited(vms=3)
    assert api("POST", "/api/v1/vms?project=acc-quota", {"name": "one-more", **OFF}).status == 403
    assert api("PATCH", f"/api/v1/vms/{created['id']}", {"memory_mib": 128}).status == 200, "that has no limit now"
    limited(networks=1)
    assert api("POST", "/api/v1/networks?project=acc-quota", {"name": "acc-q1"}).status == 201
    assert api("POST", "/api/v1/networks?project=acc-quota", {"name": "acc-q2"}).problem["field"] == "networks"


async def test_counted_usage_equals_the_existing_objects(
    site: Platform, api: Api, limited: Callable[..., None]
) -> None:
    for number in range(3):
        api("POST", "/api/v1/vms?project=acc-quota", {"name": f"c{number}", **OFF, "vcpus": 2})
    first = api("GET", "/api/v1/vms/c0?project=acc-quota").body
    api("PATCH", f"/api/v1/vms/{first['id']}", {"vcpus": 4})
    api("DELETE", f"/api/v1/vms/{api('GET', '/api/v1/vms/c1?project=acc-quota').body['id']}")
    until(lambda: len(list(site.client.list("vms", project="acc-quota"))) == 2, "it is gone")
    connection = await asyncpg.connect(site.postgres.url)
    try:
        rows = await connection.fetch(
            "SELECT u.project, u.vms, u.vcpus, u.memory_mib, u.disk_mib, u.networks,"
            " (SELECT count(*) FROM vms WHERE project = u.project) AS has_vms,"
            " (SELECT coalesce(sum((spec ->> 'vcpus')::int), 0) FROM vms WHERE project = u.project) AS has_vcpus,"
            " (SELECT coalesce(sum((spec ->> 'memory_mib')::int), 0) FROM vms WHERE project = u.project) AS has_mib,"
            " (SELECT coalesce(sum(disk_mib), 0) FROM vms WHERE project = u.project)"
            " + (SELECT coalesce(sum(size_mib), 0) FROM volumes WHERE project = u.project) AS has_disk,"
            " (SELECT count(*) FROM networks WHERE project = u.project) AS has_networks FROM project_usage u"
        )
        wrong = await connection.fetch(
            "SELECT l.* FROM node_loads l, LATERAL (SELECT coalesce(sum((spec ->> 'vcpus')::bigint), 0) AS vcpus,"
            " coalesce(sum((spec ->> 'memory_mib')::bigint), 0) AS mib FROM vms WHERE node = l.node) has"
            " WHERE (l.vcpus, l.memory_mib) <> (has.vcpus, has.mib)"
        )
    finally:
        await connection.close()
    for row in rows:
        counted = (row["vms"], row["vcpus"], row["memory_mib"], row["disk_mib"], row["networks"])
        assert counted == (row["has_vms"], row["has_vcpus"], row["has_mib"], row["has_disk"], row["has_networks"]), row
    assert any(row["project"] == "acc-quota" and row["vcpus"] == 6 for row in rows)
    assert not wrong, "what is placed on nodes is what there is"
