"""What the CLI prints and with which code it ends."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import novacron.__main__ as main
from novacron.agent.settings import AgentSettings
from novacron.api.edge.rate_limits import RateSettings
from novacron.cli import (
    access,
    images,
    lists,
    networks,
    nodes,
    options,
    output,
    progress,
    snapshots,
    vm_create,
    vm_templates,
    vms,
    volumes,
)  # fmt: skip
from novacron.cli.output import Object
from novacron.cli.progress import share_done
from novacron.client import ApiError, Unreachable
from novacron.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ApiError({"status": 400, "detail": "d", "field": "memory_mib"}), output.EXIT_USAGE),
        (ApiError({"status": 401, "detail": "d"}), output.EXIT_UNAUTHENTICATED),
        (ApiError({"status": 404, "detail": "d"}), output.EXIT_NOT_FOUND),
        (ApiError({"status": 409, "detail": "d"}), output.EXIT_REFUSED),
        (ApiError({"status": 503, "detail": "d"}), output.EXIT_UNREACHABLE),
        (Unreachable("no answer"), output.EXIT_UNREACHABLE),
        (TimeoutError("not there"), output.EXIT_TIMEOUT),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    with pytest.raises(typer.Exit) as caught, output.errors():
        raise error
    assert caught.value.exit_code == code


def test_an_error_names_the_field_and_gives_advice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), output.errors():
        raise ApiError({"status": 400, "detail": "too small", "field": "memory_mib", "hint": "use 64 or more"})
    assert capsys.readouterr().err == "error: memory_mib: too small\nuse 64 or more\n"


def test_a_table_is_aligned_and_shows_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"a": "x", "b": None}, {"a": "long", "b": 1}], {"A": lambda r: r["a"], "B": lambda r: r["b"]})
    assert capsys.readouterr().out == "A     B\nx     -\nlong  1\n"


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes_are_for_people(count: float | None, text: str) -> None:
    assert output.size(count) == text


def test_the_progress_bar_stays_between_empty_and_full() -> None:
    progress = {"total_bytes": 100, "remaining_bytes": 150}
    assert share_done({"phase": "transferring", "progress": progress}) == 0.0
    assert share_done({"phase": "completed", "progress": progress}) == 1.0


SHARED = (options.option("spec.size_mib", int, "--size", help="size"), options.option("name", str, help="name"))


class Calls:
    """Stands for the client: notes each call, and answers with an object that has everything a command prints."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], Object]] = []

    def __getattr__(self, name: str) -> Callable[..., Object]:
        def call(*arguments: Any, **fields: Any) -> Object:
            self.made.append((name, arguments, fields))
            spec = {"labels": {"a": "1"}, "taints": [], "passthrough": ["0000:00:02.0"], "subnet": "10.0.0.0/24"}
            return {
                "id": "id-1", "name": "web", "node": None, "deleting": False, "migration": None, "mtu": 1500,
                "status": {"state": "pending"}, "spec": spec, "size_bytes": 1, "source": "a", "rules": [],
                "revision": 7,
            }  # fmt: skip

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorder = Calls()
    for module in (vm_create, vm_templates, vms, volumes, networks, nodes, images, snapshots, access, lists):
        monkeypatch.setattr(module, "Client", lambda: recorder)
    monkeypatch.setattr(output, "fields", lambda *_: None)
    return recorder


def run(*arguments: str) -> None:
    done = CliRunner().invoke(main.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_creating_a_vm_sends_defaults_and_explicit_options(calls: Calls, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# mine\nssh-ed25519 AAAA\n\n")
    run("vm", "create", "web", "--image", "tiny", "--memory", "512", "--no-start", "--cpu-flag", "avx2", "--ha",
        "--firmware", "uefi", "--no-display", "--require-label", "disk=ssd", "--network", "blue=10.0.0.5",
        "--network", "red", "--security-group", "open", "--ssh-key", str(keys))  # fmt: skip
    assert calls.made == [("create_vm", (), {
        "name": "web", "image": "tiny", "memory_mib": 512, "power": "stopped", "restart": "on-failure",
        "start_order": 500, "start_delay_s": 0, "protected": False, "ha": True, "ha_priority": 500,
        "firmware": "uefi", "os": "other", "disk_boot_order": 1, "kernel_arguments": "",
        "smbios_manufacturer": "", "smbios_serial": "", "smbios_asset_tag": "", "serial_ports": 0,
        "cpu_policy": "shared", "hugepages": "none", "numa_nodes": 1, "display": "none",
        "own_disk": True, "cpu": "baseline", "cpu_flags": ["avx2"],
        "placement": {"labels": {"disk": "ssd"}, "anti_affinity_scope": "node"},
        "nics": [{"network": "blue", "address": "10.0.0.5", "groups": ["open"]},
                 {"network": "red", "address": None, "groups": ["open"]}],
        "cloud_init": {"ssh_keys": ["ssh-ed25519 AAAA"]},
    })]  # fmt: skip


def test_creating_a_vm_from_presets_sends_only_explicit_options(calls: Calls) -> None:
    run("vm", "create", "web", "--flavor", "m1", "--template", "web", "--vcpus", "1", "--no-tpm", "--no-start")
    fields: Object = {"name": "web", "flavor": "m1", "template": "web", "vcpus": 1, "power": "stopped", "tpm": False}
    assert calls.made == [("create_vm", (), fields)]
    calls.made.clear()
    run("template", "create", "web", "--image", "tiny", "--tpm", "--network", "lan")
    spec: Object = {"image": "tiny", "tpm": True, "nics": [{"network": "lan"}]}
    assert calls.made == [("create_template", ("web", spec), {"vm": None, "shared": False})]


def test_changing_a_vm_sends_only_explicit_options(calls: Calls) -> None:
    run("vm", "set", "web", "--no-protect", "--disk-iops", "0", "--vcpus-max", "8", "--restart", "never")
    changes: Object = {"protected": False, "disk_iops": None, "vcpus_max": 8, "restart": "never"}
    assert calls.made == [("configure_vm", ("web",), changes)]


def test_every_kind_of_object_is_described_with_the_same_options(calls: Calls) -> None:
    written = ("--display-name", "Bücher", "--description", "", "--tags", "web, blue")
    fields: Object = {"display_name": "Bücher", "description": "", "tags": ["web", "blue"]}
    for kind, ref, call in (
        ("vm", ("web",), "configure_vm"), ("volume", ("data",), "configure_volume"),
        ("network", ("lan",), "configure_network"), ("image", ("tiny",), "configure_image"),
        ("snapshot", ("web", "s1"), "configure_snapshot"), ("project", ("shop",), "configure_project"),
        ("node", ("host-a",), "configure_node"), ("floating-address", ("203.0.113.7",), "configure_floating_address"),
        ("forward", ("fwd-1",), "configure_forward"),
    ):  # fmt: skip
        run(kind, "set", *ref, *written)
        assert calls.made.pop() == (call, ref, fields)
    run("security-group", "set", "open", *written)
    assert calls.made.pop() == ("configure_security_group", ("open", None), fields)
    run("vm", "set", "web", "--tags", "")
    assert calls.made.pop() == ("configure_vm", ("web",), {"tags": []})


@pytest.mark.parametrize(
    ("format", "shown"),
    [
        ("json", '[\n  {\n    "name": "w\\u00e9b",\n    "n": [\n      1\n    ]\n  },\n  {\n    "id": "x"\n  }\n]\n'),
        ("yaml", '- name: "w\\xE9b"\n  n:\n  - 1\n- id: x\n'),
        ("name", "w\u00e9b\nx\n"),
    ],
)
def test_programs_get_json_yaml_and_names(format: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    objects: list[Object] = [{"name": "w\u00e9b", "n": [1]}, {"id": "x"}]
    output.rows(objects, {}, output.OutputFormat(format))
    assert capsys.readouterr().out == shown


def test_a_list_of_vms_is_filtered_and_ends_where_it_was_asked_to(calls: Calls) -> None:
    asked: list[tuple[Any, ...]] = []

    def listed(kind: str, limit: int | None = None, **filters: str) -> list[Object]:
        asked.append((kind, limit, filters))
        return []

    calls.__dict__["list"] = listed
    run("vm", "ls", "--name", "web*", "--image", "tiny", "--limit", "3", "-o", "name")
    assert asked == [("vms", 3, {"image": "tiny", "name": "web*"})]


def test_sizes_have_units(calls: Calls) -> None:
    run("vm", "create", "web", "--image", "tiny", "--memory", "1.5G", "--disk", "20GiB", "--memory-max", "64g")
    run("vm", "set", "web", "--memory", "512M", "--memory-max", "0")
    run("volume", "create", "data", "--size", "2T", "--no-wait")
    run("volume", "set", "data", "--size", "4096")
    sizes = [{key: value for key, value in fields.items() if key.endswith("_mib")} for _, _, fields in calls.made]
    assert sizes == [
        {"memory_mib": 1536, "disk_mib": 20480, "memory_max_mib": 65536},
        {"memory_mib": 512, "memory_max_mib": None},
        {"size_mib": 2 << 20},
        {"size_mib": 4096},
    ]


@pytest.mark.parametrize("size", ["4X", "G", "-1G", "1.0000001G", "4 G B", "4GB", "", "1e9", "½G", "9" * 30])
def test_what_is_no_size_is_said_with_the_option_and_how_to_write_one(calls: Calls, size: str) -> None:
    done = CliRunner().invoke(main.app, ["vm", "create", "web", "--image", "tiny", "--disk", size])
    words = " ".join(done.output.replace("│", "").split())
    assert done.exit_code == output.EXIT_USAGE and "'--disk'" in words and "write it like 512M, 4G" in words
    assert calls.made == []


def test_an_error_names_the_option_that_was_typed(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    run("vm", "create", "web", "--image", "tiny", "--memory", "8M")
    with pytest.raises(typer.Exit), output.errors():
        raise ApiError({"status": 400, "detail": "must be at least 16", "field": "memory_mib"})
    assert capsys.readouterr().err.splitlines()[-1] == "error: --memory: must be at least 16"


def test_an_action_is_done_to_all_vms_that_are_named_whatever_fails(calls: Calls) -> None:
    def act(kind: str, ref: str, action: str, body: object = None) -> Object:
        if ref == "gone":
            raise ApiError({"status": 404, "detail": "no VM gone"})
        stopping: Object = {
            "name": ref,
            "node": "a",
            "deleting": False,
            "migration": None,
            "status": {"state": "running"},
        }
        return stopping

    calls.__dict__["act"] = act
    done = CliRunner().invoke(main.app, ["vm", "kill", "web", "gone", "db"])
    assert done.exit_code == output.EXIT_NOT_FOUND
    assert done.stdout.splitlines() == [f"{name}: running on a, will be stopped" for name in ("web", "db")]
    assert done.stderr == "error: no VM gone\n"
    listed = CliRunner().invoke(main.app, ["vm", "stop", "web", "db", "-o", "json"])
    assert [vm["name"] for vm in json.loads(listed.stdout)] == ["web", "db"]
    rebooted = CliRunner().invoke(main.app, ["vm", "restart", "web"])
    assert rebooted.stdout == "web: running on a, reboot requested\n"


def test_what_is_in_use_is_deleted_only_after_a_person_agreed(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    running: Object = {"id": "vm-1", "name": "web", "node": "a", "status": {"state": "running"}}
    monkeypatch.setattr(calls, "get", lambda *_: running, raising=False)
    terminal, answers = [True], iter([False, True])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal[0]))
    monkeypatch.setattr("typer.confirm", lambda *_, **__: next(answers))
    deleted: tuple[str, tuple[Any, ...], Object] = ("delete", ("vms", "vm-1"), {})
    for arguments, done in ((["web"], False), (["web"], True), (["web", "--yes"], True)):
        calls.made.clear()
        main_command()(["vm", "rm", *arguments], standalone_mode=False)
        assert calls.made == ([deleted] if done else [])
    terminal[0] = False
    calls.made.clear()
    refused = CliRunner().invoke(main.app, ["vm", "delete", "web"])
    assert refused.exit_code == output.EXIT_USAGE and calls.made == []
    assert "web is running: there is no terminal to confirm this" in refused.stderr and "--yes" in refused.stderr
    main_command()(["vm", "delete", "web", "-y"], standalone_mode=False)
    assert calls.made == [deleted]


def main_command() -> Any:
    return typer.main.get_command(main.app)


@pytest.mark.parametrize("words", [["-h"], ["vm", "-h"], ["vm", "ls", "-h"], ["node", "info", "-h"], ["server", "-h"]])
def test_help_is_one_letter_away_also_for_the_names_of_other_programs(words: list[str]) -> None:
    done = CliRunner().invoke(main.app, words)
    assert done.exit_code == 0 and "Usage:" in done.output


def test_security_groups_can_be_removed_all(calls: Calls) -> None:
    run("vm", "set", "web", "--no-security-group")
    assert calls.made == [("configure_vm", ("web",), {"security_groups": []})]


def test_a_migration_accepts_a_rate_with_a_unit(calls: Calls) -> None:
    run("vm", "migrate", "web", "--to", "b", "--max-rate", "80Mbit", "--policy", "post-copy", "--no-wait")
    fields = {"target": "b", "rate_limit_bytes_per_s": 10_000_000, "weight": 1, "policy": "post-copy", "warm": False}
    assert calls.made == [("act", ("vms", "web", "migrate", fields), {})]


def test_labels_and_devices_of_a_node_are_added_and_removed(calls: Calls) -> None:
    run("node", "set", "a", "--label", "b=2", "--label", "a-", "--passthrough", "0000:00:02.0-", "--migrations", "3",
        "--migration-rate", "none")  # fmt: skip
    changes: Object = {"migration_rate_bytes_per_s": None, "migrations_at_once": 3, "labels": {"b": "2"}, "taints": [],
               "passthrough": []}  # fmt: skip
    assert calls.made[-1] == ("request", ("PATCH", "/api/v1/nodes/a", changes, None), {"If_Match": '"7"'})


def test_a_value_of_0_removes_a_volumes_limit(calls: Calls) -> None:
    run("volume", "set", "data", "--iops", "0", "--throughput", "1000000")
    assert calls.made == [("configure_volume", ("data",), {"iops": None, "bytes_per_s": 1_000_000})]


def test_a_network_on_a_bridge_is_of_that_kind(calls: Calls) -> None:
    run("network", "create", "blue", "--bridge", "br0", "--vlan", "5", "--no-nat")
    fields = {"kind": "bridge", "bridge": "br0", "vlan": 5, "nat": False, "encryption": "between-sites"}
    assert calls.made == [("create_network", ("blue",), fields)]


def test_expanded_options_are_parameters_that_typer_sees() -> None:
    seen: list[tuple[str, Object, options.QuietWait]] = []

    @options.expand
    def command(
        ref: str, fields: Annotated[Object, SHARED], wait: options.QuietWait = options.QuietWait(timeout_s=5)
    ) -> None:
        seen.append((ref, fields, wait))

    assert list(inspect.signature(command).parameters) == ["ref", "spec_size_mib", "name", "wait", "timeout_s"]
    command(ref="web", spec_size_mib=3, name=None, wait=False, timeout_s=9)
    assert seen == [("web", {"spec": {"size_mib": 3}}, options.QuietWait(False, 9))]


def test_the_server_is_set_up_as_its_options_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: list[ServerSettings] = []
    monkeypatch.setattr("novacron.server.main.run", settings.append)
    monkeypatch.setenv("NOVACRON_CONFIG", str(tmp_path / "config.json"))
    run("server", "--database", "postgresql://db", "--state-dir", str(tmp_path), "--writes-per-s", "7",
        "--leave-after", "3", "--redis", "redis://r", "--workers", "2")  # fmt: skip
    assert settings == [
        ServerSettings(
            "postgresql://db", tmp_path / "server", rates=RateSettings(writes=7), leave_s=3, redis_url="redis://r",
            workers=2, pool=25, cli_config=tmp_path / "config.json",
        )
    ]  # fmt: skip


def test_an_agent_is_set_up_as_its_options_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: list[AgentSettings] = []
    monkeypatch.setattr("novacron.agent.main.run", lambda agent_settings, join: settings.append(agent_settings))
    monkeypatch.setattr("novacron.qemu.confine.can_confine", lambda: True)
    run("agent", "--name", "a", "--state-dir", str(tmp_path), "--pool", f"data={tmp_path}", "--pages-limit", "2",
        "--keep-images", "1", "--reuse", "none", "--mask-cpu-flag", "avx2")  # fmt: skip
    assert settings == [
        AgentSettings(
            tmp_path / "agent", tmp_path / "images", "a", pools={"data": tmp_path}, pages_bytes_max=2 << 20,
            keep_images_s=3600, reuse=frozenset(), masked_cpu_flags=frozenset({"avx2"}), uid_base=1_879_048_192,
        )
    ]  # fmt: skip


def test_an_agent_refuses_a_pool_without_a_directory(tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["agent", "--pool", f"data={tmp_path / 'none'}"])
    assert done.exit_code == output.EXIT_USAGE and "is no directory" in " ".join(done.output.replace("│", "").split())


@pytest.mark.parametrize(
    ("total", "moved", "stays", "given_up", "gave_up"),
    [
        (0, [], [], [], False),  # an empty node has nothing to move
        (2, ["a", "b"], [], [], False),
        (2, ["a"], ["b"], [], False),
        (2, ["a"], ["b"], ["b"], True),
    ],
)
def test_a_drain_has_given_up_only_when_vms_remain(
    total: int, moved: list[str], stays: list[str], given_up: list[str], gave_up: bool
) -> None:
    drain = {
        "total": total, "moved": moved, "moving": [], "stays": [{"vm": vm} for vm in stays], "given_up": given_up,
    }  # fmt: skip
    assert nodes._gave_up(drain) is gave_up


@pytest.mark.parametrize(
    ("kind", "what", "end"),
    [
        ("migrations", "migration", "novacron migration abort x-1"),
        ("imports", "importing image web", "novacron image abort x-1"),
        ("volumes", "creating volume data", "novacron volume delete x-1"),
        ("volumes", "detaching volume data", None),
        ("vms", "web: until running", "novacron vm stop x-1"),
        ("vms", "web: until stopped", "novacron vm kill x-1"),
        ("vms", "deleting web", None),
        ("snapshots", "taking snapshot s", None),
    ],
)
def test_an_interrupt_says_what_goes_on_and_how_to_end_it(
    kind: str, what: str, end: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(*_: object) -> None:
        raise KeyboardInterrupt

    client: Any = SimpleNamespace(wait=wait)
    with pytest.raises(typer.Exit) as ended, output.errors():
        progress.waiting(client, kind, "x-1", what, lambda now: False, 10)
    assert ended.value.exit_code == output.EXIT_INTERRUPTED
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{what}: this continues on the server; only the command has ended"
    assert [line for line in said if line.startswith("to end it")] == ([f"to end it: {end}"] if end else [])


@pytest.mark.parametrize("kind", [*progress.SEE, *progress.END])
def test_what_an_interrupt_advises_are_commands(kind: str) -> None:
    for text in filter(None, (progress.SEE.get(kind), progress.END.get(kind), progress.STOPS)):
        group, name = text.split()[1:3]
        assert name in main_command().commands[group].commands
