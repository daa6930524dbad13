"""Users' data for the first boot of VMs that are encrypted at rest: encrypted before they come near the database."""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from novacron.api.access.context import ApiRequest, services
from novacron.model.cloud_init import SealedSeed, SealedSeedChanges, Seed, SeedChanges, check_seed
from novacron.model.encryption import SealedText
from novacron.model.errors import Conflict
from novacron.model.project import Project
from novacron.sealed_text import seal
from novacron.store import new_vms, project_keys, vms


class HasSeed(Protocol):
    """Changes of a VM."""

    cloud_init: SeedChanges | UnsetType


C = TypeVar("C", bound=HasSeed)


async def of_new(request: ApiRequest, new: new_vms.NewVm, project: str) -> new_vms.NewVm:
    """Return a new VM whose user data are encrypted if its project encrypts what it creates.

    Raises Unavailable, Conflict.
    """
    home = services(request).cache.get("project", project)
    if new.seed is None or not new.seed.user_data or home is None:
        return new
    sealed = await _sealed(request, new.seed.user_data, msgspec.convert(home.body, Project).key_of_new)
    if sealed is None:
        return new
    own = {field: getattr(new.seed, field) for field in Seed.__struct_fields__}
    return new._replace(seed=SealedSeed(**{**own, "user_data": "", "sealed": sealed}))


async def with_sealed_changes(request: ApiRequest, id: str, changes: C) -> C:
    """Return changes of a VM whose user data are encrypted if the VM is. Raises Unavailable, Conflict, InvalidInput."""
    seed, entry = changes.cloud_init, services(request).cache.get("vm", id)
    key = "" if entry is None else entry.body["spec"].get("encryption_key", "")
    if seed is UNSET or not key:
        return changes
    check_seed(seed.of(Seed()))
    text = seed.user_data
    if text is UNSET and not (text := await _stored_in_the_clear(request, id)):
        return changes
    own = {field: getattr(seed, field) for field in SeedChanges.__struct_fields__}
    sealed_changes = SealedSeedChanges(**{**own, "user_data": "", "sealed": await _sealed(request, text, key)})
    return msgspec.structs.replace(changes, cloud_init=sealed_changes)  # type: ignore[type-var]  # it is a struct


async def _stored_in_the_clear(request: ApiRequest, id: str) -> str:
    """Return the user data of a VM that were stored before such were encrypted."""
    async with services(request).database.connection() as connection:
        seed = await vms.seed_of(connection, id)
    return "" if seed is None else seed.user_data


async def _sealed(request: ApiRequest, text: str, key: str) -> SealedText | None:
    """Return a text, encrypted with a project's key; None: there is nothing to encrypt, or to encrypt it with."""
    if not text or not key:
        return None
    async with services(request).database.connection() as connection:
        wrapped = await project_keys.wrapped(connection, [key])
    if not wrapped:
        raise Conflict("the key that encrypts the VM has just changed", hint="try again")
    return seal(await services(request).platform_keys.unwrap(wrapped[0]), text)
