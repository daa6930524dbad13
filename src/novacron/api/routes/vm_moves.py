"""Routes that move VMs to other nodes: at once, at a later time, or only foreseen."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from litestar import Response, post
from litestar.params import FromPath, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.model.access import Right
from novacron.model.errors import IllegalState, NovaError
from novacron.model.link_sharing import Rate, Weight
from novacron.model.migration import Migration, MigrationPolicy
from novacron.model.names import Name
from novacron.model.probe import MoveForeseen
from novacron.model.scheduled_move import LOOK_AHEAD, MoveTime, ScheduledMove, cheapest, window
from novacron.model.vm import Vm, VmState
from novacron.store import migrations, scheduled_moves
from novacron.store.database import Connection


class MigrateVm(msgspec.Struct, forbid_unknown_fields=True):
    """Where to move the VM (default: chosen by the platform), its bandwidth limit, its weight among migrations that
    share a link, and what to do if the guest writes too fast."""

    target: Name | None = None
    weight: Weight = 1
    rate_limit_bytes_per_s: Rate | None = None
    policy: MigrationPolicy = MigrationPolicy.THROTTLE
    warm: bool = False
    """Pause the guest during the migration, and move its snapshots along."""


class ScheduleMigration(MigrateVm, kw_only=True):
    """A scheduled migration: earliest start, deadline, or both. With a deadline it begins when the VM is usually
    least busy; otherwise as early as possible. A deadline without ``not_before`` counts from now."""

    not_before: datetime | None = None
    deadline: datetime | None = None


class ForeseeMigration(msgspec.Struct, forbid_unknown_fields=True):
    """The target node of the estimate; without ``target`` the platform chooses."""

    target: Name | None = None


class MigrationForecast(msgspec.Struct):
    """The estimated cost of a migration."""

    vm_name: str
    source: str
    target: str
    move: MoveForeseen
    cheapest_at: datetime | None = None
    """When a migration is cheapest within a day; None: the VM's usual load is unknown."""
    cheapest_why: str | None = None


@post(
    "/{ref:str}/actions/migrate",
    summary="Migrate the VM to another node",
    status_code=202,
    opt=authorization.in_project(Right.OPERATE),
)
async def migrate_vm(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[MigrateVm | None] = None
) -> Response[Migration]:
    id, options, revision = (
        await authorization.resolve(request, "vm", ref),
        data or MigrateVm(),
        replies.if_match(request),
    )

    async def work(connection: Connection) -> Migration:
        return await migrations.create(
            connection,
            id,
            migrations.MoveRequest(
                actor=request.user.name,
                target=options.target,
                if_match=revision,
                weight=options.weight,
                rate_limit_bytes_per_s=options.rate_limit_bytes_per_s,
                policy=options.policy,
                warm=options.warm,
            ),
            services(request).fleet,
        )

    return await replies.write(
        request, work, status=202, location=lambda migration: f"/api/v1/migrations/{migration.id}"
    )


@post(
    "/{ref:str}/actions/foresee-migration",
    summary="Estimate a migration to another node without migrating",
    status_code=200,
    opt=authorization.in_project(Right.OPERATE),
)
async def foresee_migration(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[ForeseeMigration | None] = None
) -> MigrationForecast:
    id, context = await authorization.resolve(request, "vm", ref), services(request)
    async with context.database.transaction() as connection:
        vm, target = await migrations.choose(
            connection, id, (data or ForeseeMigration()).target, None, index=context.fleet
        )
    if vm.status.state is not VmState.RUNNING:
        raise IllegalState(
            f"VM {vm.name} is {vm.status.state}", hint="only the migration of a running VM can be estimated"
        )
    assert vm.node is not None
    foreseen = await context.agents.estimate_move(vm.id, vm.node, target)
    now = datetime.now(UTC)
    async with context.database.connection() as connection:
        usual = await scheduled_moves.usual(connection, vm.id, now.date())
    if usual is None:
        return MigrationForecast(vm.name, vm.node, target, foreseen)
    best = cheapest(now, now + LOOK_AHEAD, usual, _takes_s(foreseen))
    return MigrationForecast(vm.name, vm.node, target, foreseen, best.at, best.why)


@post(
    "/{ref:str}/actions/schedule-migration",
    summary="Schedule a migration of the VM for the cheapest time",
    status_code=200,
    opt=authorization.in_project(Right.OPERATE),
)
async def schedule_migration(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[ScheduleMigration]
) -> Response[Vm]:
    id, revision = await authorization.resolve(request, "vm", ref), replies.if_match(request)
    now = datetime.now(UTC)
    open_ = window(data.not_before, data.deadline, now)
    if open_.is_open_end:
        time = MoveTime(open_.not_before, "there is no deadline: as early as possible")
    else:
        takes_s = await _foreseen_s(request, id, data.target)
        async with services(request).database.connection() as connection:
            usual = await scheduled_moves.usual(connection, id, now.date())
        time = cheapest(open_.not_before, open_.deadline, usual, takes_s)
    move = ScheduledMove(
        not_before=open_.not_before, deadline=open_.deadline, begins_at=time.at, why=time.why, actor=request.user.name,
        target=data.target, weight=data.weight, rate_limit_bytes_per_s=data.rate_limit_bytes_per_s, policy=data.policy,
        warm=data.warm,
    )  # fmt: skip

    async def work(connection: Connection) -> Vm:
        return await scheduled_moves.schedule(connection, id, move, revision)

    return await replies.write(request, work)


@post(
    "/{ref:str}/actions/unschedule-migration",
    summary="Cancel the scheduled migration of the VM",
    status_code=200,
    opt=authorization.in_project(Right.OPERATE),
)
async def unschedule_migration(request: ApiRequest, ref: FromPath[str]) -> Response[Vm]:
    id, revision = await authorization.resolve(request, "vm", ref), replies.if_match(request)

    async def work(connection: Connection) -> Vm:
        return await scheduled_moves.cancel(connection, id, revision, request.user.name)

    return await replies.write(request, work)


async def _foreseen_s(request: ApiRequest, id: str, target: str | None) -> float | None:
    """Return how long the migration would take now; None where that can't be foreseen."""
    context = services(request)
    try:
        async with context.database.transaction() as connection:
            vm, target = await migrations.choose(connection, id, target, None, index=context.fleet)
        if vm.status.state is not VmState.RUNNING or vm.node is None:
            return None
        return _takes_s(await context.agents.estimate_move(vm.id, vm.node, target))
    except NovaError:  # what keeps it from moving now may be gone by then
        return None


def _takes_s(foreseen: MoveForeseen) -> float | None:
    return foreseen.forecast.total_s if foreseen.forecast.converges else None


ROUTES = (migrate_vm, foresee_migration, schedule_migration, unschedule_migration)
