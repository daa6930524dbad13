"""``novacron setup``: what is left to do follows from what a host has; each way to a host that is set up ends there."""

from __future__ import annotations

import os
import subprocess
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.debian.manifest import AGENT as AGENT_PACKAGE
from deploy.debian.manifest import settings as packaged_settings
from novacron.__main__ import app
from novacron.local.setup import plan
from novacron.local.setup.host import Accounts, LocalHost, SetupFailed, unit_facts
from novacron.local.setup.plan import (
    CreateServiceUser,
    EnableUnit,
    PathFacts,
    RestartUnit,
    SetFile,
    SetupRefused,
    SetupRequest,
    SetupStep,
    overridden,
    steps_left,
)
from novacron.local.setup.services import AGENT, JOIN_TOKEN, SERVER, HostService
from novacron.local.setup.settings_edit import CannotEdit, edited
from novacron.settings_file import template

SERVER_WANTED = SetupRequest(SERVER, {"advertise": "control.example.net", "port": 8443}, {"host": "0.0.0.0"})
AGENT_WANTED = SetupRequest(AGENT, {"name": "host-b"}, {"join": f"@{JOIN_TOKEN}"}, join_token="nvj_secret")
STEPS_MAX = 20


class FakeHost:
    """A host whose files are below a directory, whose systemd is two flags, and where a node joins as it starts."""

    def __init__(self, root: Path, service: HostService, *, has_package: bool = True) -> None:
        self.root, self.service, self.node = root, service, ""
        self.has_package, self.has_user, self.enabled, self.began_at_s, self.starts = has_package, False, False, 0.0, 0
        self.joins = service is AGENT
        self.local = LocalHost(root, Accounts(self._user, lambda _: os.getgid(), self._name, self._name), self._run)
        self.groups = {SERVER.settings: "novacron"}

    def _user(self, name: str) -> int:
        if name == "novacron" and not self.has_user:
            raise KeyError(name)
        return os.getuid()

    def _name(self, _: int) -> str:
        return "root"

    def _run(self, command: tuple[str, ...], limit_s: float) -> subprocess.CompletedProcess[str]:
        said = ""
        match command:
            case ("systemctl", "show", *_):
                monotonic_us = int((self.began_at_s - (time.time() - time.monotonic())) * 1e6)
                said = (
                    f"LoadState={'loaded' if self.has_package else 'not-found'}\n"
                    f"UnitFileState={'enabled' if self.enabled else 'disabled'}\n"
                    f"ActiveState={'active' if self.began_at_s else 'inactive'}\n"
                    f"ExecMainStartTimestampMonotonic={monotonic_us if self.began_at_s else 0}\n"
                )
            case ("systemctl", "enable", *_):
                self.enabled = True
            case ("systemctl", "restart", _):
                self.starts += 1
                newest = max((path.stat().st_mtime for path in self.root.rglob("*.toml")), default=0.0)
                self.began_at_s = max(time.time(), newest + 0.001)
                if self.joins and (self.root / "etc/novacron/join-token").exists():
                    self.node = "host-b"
            case ("systemd-sysusers", _):
                self.has_user = True
        return subprocess.CompletedProcess(command, 0, said, "")

    def left(self, wanted: SetupRequest) -> list[SetupStep]:
        facts = self.local.facts(wanted, self.node or None)
        known = {  # every file here belongs to whoever runs the tests
            path: found._replace(group="novacron" if path == SERVER.settings else "root")
            for path, found in facts.paths.items()
        }
        return steps_left(wanted, facts._replace(paths=known))

    def set_up(self, wanted: SetupRequest) -> list[SetupStep]:
        """Make what is left until nothing is; return the steps that were made."""
        made: list[SetupStep] = []
        while steps := self.left(wanted):
            for step in steps:
                self.local.make(step)
                made.append(step)
            assert len(made) <= STEPS_MAX, made
        return made

    def files(self) -> Mapping[str, tuple[bytes, int]]:
        return {
            str(path.relative_to(self.root)): (path.read_bytes(), path.stat().st_mode & 0o777)
            for path in self.root.rglob("*")
            if path.is_file()
        }


@pytest.mark.parametrize("wanted", [SERVER_WANTED, AGENT_WANTED], ids=lambda wanted: wanted.service.name)
def test_a_host_is_set_up_once_and_a_second_time_nothing_is_left(tmp_path: Path, wanted: SetupRequest) -> None:
    host = FakeHost(tmp_path, wanted.service)
    host.set_up(wanted)
    assert host.enabled and host.starts == 1
    written = tomllib.loads((tmp_path / str(wanted.service.settings)[1:]).read_text())
    assert {**wanted.defaults, **wanted.settings}.items() <= written.items()
    assert not (tmp_path / str(JOIN_TOKEN)[1:]).exists(), "the token has been used"
    before = host.files()
    assert host.set_up(wanted) == []
    assert host.files() == before and host.starts == 1


@pytest.mark.parametrize("wanted", [SERVER_WANTED, AGENT_WANTED], ids=lambda wanted: wanted.service.name)
def test_a_set_up_that_was_killed_after_any_step_goes_on_to_the_same_end(tmp_path: Path, wanted: SetupRequest) -> None:
    whole = FakeHost(tmp_path / "whole", wanted.service)
    steps = len(whole.set_up(wanted))
    assert steps > 4
    for kill_after in range(steps):
        host = FakeHost(tmp_path / str(kill_after), wanted.service)
        done = 0
        while done < kill_after:
            for step in host.left(wanted)[: kill_after - done]:
                host.local.make(step)
                done += 1
        host.set_up(wanted)
        assert host.files() == whole.files(), f"killed after step {kill_after}"
        assert host.enabled and host.began_at_s and host.left(wanted) == []


def test_a_file_that_a_killed_set_up_has_written_counts_only_after_a_restart(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, SERVER)
    host.set_up(SetupRequest(SERVER, {}))
    for step in host.left(SERVER_WANTED):
        if isinstance(step, SetFile):
            host.local.make(step)
    newer = host.began_at_s + 1
    os.utime(tmp_path / "etc/novacron/server.toml", (newer, newer))
    (restart,) = host.left(SERVER_WANTED)
    assert restart == RestartUnit(SERVER.unit, "its settings have changed since it started")


def test_what_an_operator_wrote_is_shown_and_kept_without_replace(tmp_path: Path) -> None:
    path = tmp_path / "etc/novacron/server.toml"
    path.parent.mkdir(parents=True)
    by_hand = 'advertise = "old.example.net"  # until May\nport = 8443\npool = 30\n'
    path.write_text(by_hand)
    host = FakeHost(tmp_path, SERVER)
    with pytest.raises(SetupRefused) as refused:
        host.set_up(SERVER_WANTED)
    assert refused.value.problems == (
        '/etc/novacron/server.toml has advertise = "old.example.net", but you gave "control.example.net": nothing was'
        " changed; to change it, add --replace",
    )
    assert path.read_text() == by_hand and not host.starts
    made = host.set_up(SERVER_WANTED._replace(replace=True))
    (written,) = [step for step in made if isinstance(step, SetFile)]
    assert [line for line in written.changes[2:] if line[0] in "+-"] == [
        '-advertise = "old.example.net"  # until May', '+advertise = "control.example.net"', '+host = "0.0.0.0"',
    ]  # fmt: skip
    assert path.read_text() == 'advertise = "control.example.net"\nport = 8443\npool = 30\nhost = "0.0.0.0"\n'


def test_passwords_are_not_shown() -> None:
    before = b'database = "postgresql://me:old-secret@db/novacron"\n'
    facts = plan.HostFacts({SERVER.settings: PathFacts(False, 0o640, "root", "novacron", 0.0, before)},
                           plan.UnitFacts("loaded"))  # fmt: skip
    wanted = SetupRequest(SERVER, {"database": "postgresql://me:new-secret@db/novacron"})
    with pytest.raises(SetupRefused) as refused:
        steps_left(wanted, facts)
    shown = str(refused.value) + "".join(str(step) for step in steps_left(wanted._replace(replace=True), facts))
    assert "[hidden]@db" in shown and "secret" not in shown


def test_a_join_token_is_private_and_never_shown(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, AGENT)
    steps = host.left(AGENT_WANTED)
    assert "nvj_secret" not in "".join(map(str, steps))
    (token,) = [step for step in steps if isinstance(step, SetFile) and step.path == JOIN_TOKEN]
    host.joins = False
    for step in steps:
        host.local.make(step)
    assert token.mode == 0o600 and host.files()["etc/novacron/join-token"] == (b"nvj_secret\n", 0o600)


@pytest.mark.parametrize(
    ("load_state", "said"),
    [("not-found", "apt install ./novacron-agent_*.deb"), ("masked", "unmask"), ("bad-setting", "systemctl status")],
)
def test_a_unit_that_can_not_be_used_is_refused_with_what_to_do(load_state: str, said: str) -> None:
    with pytest.raises(SetupRefused, match=said.replace("*", r"\*").replace(".", r"\.")):
        steps_left(AGENT_WANTED, plan.HostFacts({}, plan.UnitFacts(load_state)))


def test_a_file_where_a_folder_must_be_is_left_alone() -> None:
    facts = plan.HostFacts({SERVER.folders[0].path: PathFacts(False, 0o644, "root", "root")}, plan.UnitFacts("loaded"))
    with pytest.raises(SetupRefused, match="/etc/novacron is not a directory"):
        steps_left(SERVER_WANTED, facts)


def test_a_variable_that_wins_over_a_setting_is_named() -> None:
    environment = "# NOVACRON_SERVER_PORT=1\nNOVACRON_LOG_LEVEL=debug\nNOVACRON_SERVER_ADVERTISE=other\n"
    (problem,) = overridden(SERVER_WANTED, SERVER_WANTED.settings, environment)
    assert problem == (
        "/etc/default/novacron-server has NOVACRON_SERVER_ADVERTISE, which overrides advertise: remove that line"
    )


def test_the_steps_of_a_bare_host_are_in_an_order_that_works(tmp_path: Path) -> None:
    steps = FakeHost(tmp_path, SERVER).left(SERVER_WANTED)
    kinds = [type(step) for step in steps]
    assert kinds[0] is CreateServiceUser and kinds[-2:] == [EnableUnit, RestartUnit]
    assert kinds.index(SetFile) > max(number for number, kind in enumerate(kinds) if kind is plan.SetFolder)


def test_what_systemd_says_of_a_unit() -> None:
    shown = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nExecMainStartTimestampMonotonic=2500000\n"
    assert unit_facts(shown, 1000.0) == plan.UnitFacts("loaded", True, True, 1002.5)
    assert unit_facts("", 1000.0) == plan.UnitFacts("not-found")


def test_a_file_that_is_no_settings_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "etc/novacron").mkdir(parents=True)
    with (tmp_path / "etc/novacron/agent.toml").open("wb") as huge:
        huge.truncate(2 << 20)
    with pytest.raises(SetupFailed, match="larger than 1 MiB"):
        FakeHost(tmp_path, AGENT).left(AGENT_WANTED)


def test_what_can_not_be_set_up_is_said_at_once_and_without_secrets() -> None:
    words = ["--state-dir", "/srv", "--new-keys", "--database", "postgresql://me:secret@db/novacron", "--dry-run"]
    done = CliRunner().invoke(app, ["setup", "server", *words])
    assert done.exit_code == 1
    for said in ("--state-dir can't be set for a host", "--new-keys can't be set", "--database contains a password"):
        assert f"error: {said}" in done.output
    assert "secret" not in done.output and "nothing was changed" in done.output


def test_a_join_token_on_the_command_line_is_refused() -> None:
    done = CliRunner().invoke(app, ["setup", "agent", "--join", "nvj_secret", "--dry-run"])
    assert (
        done.exit_code == 1 and "--join: every user of this host can read a join token on a command line" in done.output
    )
    assert "nvj_secret" not in done.output


# Settings files


def test_a_setting_is_added_below_its_explanation_and_other_lines_stay() -> None:
    before = template(SERVER.title, SERVER.options)
    after = edited(before, {"port": 8443, "trusted-proxy": ["10.0.0.0/8"]})
    assert [line for line in after.splitlines() if line not in before.splitlines()] == [
        "port = 8443", 'trusted-proxy = ["10.0.0.0/8"]',
    ]  # fmt: skip
    assert "#port = 7443\nport = 8443\n" in after
    packaged = packaged_settings(AGENT_PACKAGE)
    assert edited(packaged, {"join": f"@{JOIN_TOKEN}"}) == packaged


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"port"=1 # mine\n', "port = 2\n"),
        ("port\t=\t1", "port = 2\n"),
        ("pool = 5\n", "pool = 5\nport = 2\n"),
        ('trusted-proxy = [\n  "a", # port = 3\n  "b",\n]\nport = 1\n', None),
        ("link-port = 1\n", "link-port = 1\nport = 2\n"),
    ],
)
def test_a_setting_is_replaced_however_it_is_written(before: str, after: str | None) -> None:
    changed = edited(before, {"port": 2})
    assert tomllib.loads(changed) == {**tomllib.loads(before), "port": 2}
    assert after is None or changed == after


def test_a_list_over_several_lines_is_replaced_as_a_whole() -> None:
    before = 'pool = 5\ntrusted-proxy = [\n  "10.0.0.0/8",  # office\n  "192.0.2.0/24",\n]\nport = 1\n'
    assert edited(before, {"trusted-proxy": ["::1/128"]}) == 'pool = 5\ntrusted-proxy = ["::1/128"]\nport = 1\n'


def test_a_file_that_can_not_be_edited_is_not_guessed_at() -> None:
    with pytest.raises(CannotEdit, match="set port by hand"):
        edited('motd = """\nport = 1\n"""\n', {"port": 2})
    with pytest.raises(CannotEdit):
        edited("[table]\nx = 1\n", {"port": 2})


@example({}, {"advertise": "a\x85\u2028\u2029b"})
@given(
    st.dictionaries(st.sampled_from(["port", "pool", "advertise", "trusted-proxy"]), st.integers(0, 9)),
    st.dictionaries(
        st.sampled_from(["port", "pool", "advertise", "trusted-proxy", "oidc"]),
        st.one_of(st.integers(-9, 9), st.booleans(), st.text(st.characters(codec="utf-8"), max_size=5),
                  st.lists(st.sampled_from(["a", 'b"', "c\\", "é\n"]))),
    ),
)  # fmt: skip
def test_an_edited_file_says_what_was_wanted_and_what_it_said_before(
    before: dict[str, int], wanted: dict[str, object]
) -> None:
    text = "# head\n" + "".join(f"#{name} = 0\n{name} = {value} # mine\n" for name, value in before.items())
    try:
        after = edited(text, wanted)
    except ValueError:
        assert any("\x7f" in str(value) for value in wanted.values()), "TOML has no such character"
        return
    assert tomllib.loads(after) == {**before, **wanted}
    assert edited(after, wanted) == after
