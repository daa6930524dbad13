"""Public functions name the types that they take and return; ``Any`` stands only where there is no name for one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import novacron
from tests.support.sources import parsed

SOURCE = Path(novacron.__file__).parent
WITHOUT_A_NAME = {
    "what types of Litestar take, whose parameters say nothing here": {
        "api/access/authentication.py": "Authentication.authenticate_request",
        "api/access/authorization.py": "guard named_project",
        "api/access/context.py": "services",
        "api/access/recorder.py": "Recorder.done Recorder.done_all Recorder.records Recorder.refused address_of",
        "api/app.py": "schema",
        "api/edge/lists.py": "answer",
        "api/edge/metadata.py": "write",
        "api/edge/problems.py": "allowed on_any_error on_http_error on_nova_error on_unstorable response",
        "api/edge/replies.py": "single write",
        "api/routes/consoles.py": "console",
        "api/routes/events.py": "access_of",
        "api/routes/watch.py": "watch",
    },
    "what a library that is overridden or wrapped declares so itself: asyncpg, click, Typer": {
        "cli/command_check.py": "check",
        "cli/options.py": "option request",
        "cli/root.py": "Group.get_command",
        "cli/vm_create.py": "Create.parse_args",
        "store/database.py": "PooledConnection.copy_records_to_table PooledConnection.execute"
        " PooledConnection.executemany PooledConnection.fetch PooledConnection.fetchrow PooledConnection.fetchval",
        "store/hosts.py": "connect",
    },
    "JSON, TOML or YAML of other programs, whose shape depends on what was asked and on their version": {
        "agent/migration/source.py": "MigrationSource.on_event",
        "agent/vm/hypervisor.py": "VirtualMachine.execute",
        "agent/vm/machine.py": "Machine.execute",
        "local/database_cluster/etcd.py": "ClusterKeys.document ClusterKeys.members",
        "local/database_cluster/patroni_config.py": "document shared",
        "local/database_cluster/view.py": "Members.ask Members.tell api_of",
        "local/setup/plan.py": "settings_in",
        "net/firewall.py": "listed",
        "qemu/monitor.py": "Monitor.__init__ Monitor.connect Monitor.execute",
        "settings_file.py": "parse",
    },
    "parts of a JSON schema, and the types that it is made of": {
        "api/edge/openapi.py": "describe",
        "api/edge/openapi_operations.py": "body parameters responses special",
        "api/edge/openapi_schemas.py": "components reference",
    },
    "JSON of a server that may be newer than the client": {
        "cli/nodes.py": "has",
        "client/aio/connection.py": "AsyncConnection.request",
        "client/errors.py": "ApiError.__init__ refusal",
        "client/protocol.py": "decode",
        "client/sync/connection.py": "Connection.request",
        "client/unreconciled.py": "way_out",
    },
    "rows as their decoder takes them: each table has its own": {
        "store/rows.py": "decode decode_each decode_whole",
    },
    "fields of an object by name: their values have the types that its struct declares": {
        "agent/actions.py": "doing",
        "api/access/authorization.py": "in_fleet in_project",
        "api/access/oidc.py": "Oidc.end",
        "api/read_model/principals.py": "Callers.change",
        "api/read_model/response_cache.py": "Capture.__init__ Capture.take ResponseCache.capture",
        "api/routes/drills.py": "newest",
        "api/routes/vms.py": "CreateVm.fields",
        "model/backup_policy.py": "BackupPolicyChanges.given",
        "model/vm_templates.py": "FlavorSpec.fields TemplateSpec.fields merged",
        "store/backup_policies.py": "configure",
        "store/hardware.py": "with_renewal",
        "store/network_changes.py": "configure",
        "store/new_vms.py": "quickly",
        "store/projects.py": "configure",
        "store/rebalancing.py": "stored_form",
        "store/sizes.py": "by_balloon",
        "store/vms.py": "configure configure_in_one_statement",
        "store/volumes.py": "configure",
    },
}
"""Public functions with ``Any`` in their signature, by reason and file. A new one needs a reason that is here, or a
type: a struct, ``TypedDict``, ``Protocol`` or ``TypeVar``, or ``object`` for what is only passed on."""


def _public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            if not inner.name.startswith("_") or inner.name == "__init__":
                yield prefix + inner.name, inner
        elif isinstance(inner, ast.ClassDef):
            if not inner.name.startswith("_"):
                yield from _public(inner, f"{prefix}{inner.name}.")
        else:
            yield from _public(inner, prefix)


def _has_any(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    of = function.args
    arguments = [*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg]
    types = [function.returns, *(argument.annotation for argument in arguments if argument is not None)]
    return any(
        (isinstance(part, ast.Name) and part.id == "Any") or (isinstance(part, ast.Attribute) and part.attr == "Any")
        for type in types if type is not None
        for part in ast.walk(type)
    )  # fmt: skip


def _with_any(tree: ast.AST) -> set[str]:
    return {name for name, function in _public(tree) if _has_any(function)}


def test_public_functions_have_any_only_where_no_type_has_a_name() -> None:
    found = {f"{path.relative_to(SOURCE)} {name}" for path in SOURCE.rglob("*.py") for name in _with_any(parsed(path))}
    listed = {
        f"{path} {name}" for paths in WITHOUT_A_NAME.values() for path, names in paths.items() for name in names.split()
    }
    assert not found - listed, "name the types of these, or say why there is no name"
    assert not listed - found, "these name their types by now: take them out of the list"


def test_any_is_found_wherever_a_signature_can_have_it() -> None:
    text = """
class Public:
    def method(self, *values: "int", **more: Any) -> None: ...
    def _own(self, value: Any) -> None: ...
class _Own:
    def method(self) -> Any: ...
if True:
    async def inside(value: dict[str, list[typing.Any]]) -> None: ...
def named(value: object) -> int: ...
"""
    assert _with_any(ast.parse(text)) == {"Public.method", "inside"}
