"""Settings files of server and agent: one order of precedence, and all that is wrong is said by its own name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.debian.manifest import AGENT, SERVER, settings
from lab import settings_page
from novacron.__main__ import app
from novacron.service_options import AgentOptions, ServerOptions
from novacron.settings_file import ONCE
from novacron.settings_file import settings as settings_of


def check(service: str, *arguments: str, expected: int = 0, **variables: str) -> list[list[str]]:
    """Return the words of each line that ``--check-settings`` prints, or that it complains with."""
    done = CliRunner().invoke(app, [service, *arguments, "--check-settings"], env=variables)
    assert done.exit_code == expected, done.output
    return [line.split() for line in done.output.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.touch(mode=0o600)
    return path


def test_command_line_wins_over_environment_over_file_over_default(file: Path) -> None:
    file.write_text('port = 1001\nlink-port = 1002\nworkers = 3\ntrusted-proxy = ["10.0.0.0/8", "192.0.2.0/24"]\n')
    lines = check(
        "server",
        "--settings",
        str(file),
        "--port",
        "3001",
        NOVACRON_SERVER_PORT="2001",
        NOVACRON_SERVER_LINK_PORT="2002",
    )
    assert ["port", "3001", "command", "line"] in lines
    assert ["link-port", "2002", "environment"] in lines
    assert ["workers", "3", "file"] in lines
    assert ["trusted-proxy", '["10.0.0.0/8",', '"192.0.2.0/24"]', "file"] in lines
    assert ["pool", "25", "default"] in lines


def test_variables_of_before_still_count_and_passwords_are_not_shown() -> None:
    lines = check("server", NOVACRON_DATABASE_URL="postgresql://me:secret@db/novacron")
    assert ["database", '"postgresql://[hidden]@db/novacron"', "environment"] in lines


def test_everything_that_is_wrong_with_a_file_is_said_at_once(file: Path) -> None:
    file.write_text(
        'prot = 1\nlink_port = 7\nport = "7443"\nworkers = 65\nnew-keys = true\npool = true\nproxy-header = "x-ip"\n'
        'advertise = ""\nwrites-per-s = 10\nreads-per-s = 0\n'
    )
    said = "\n".join(" ".join(line) for line in check("server", "--settings", str(file), expected=2))
    for problem in (
        "there is no setting prot; did you mean port?",
        "there is no setting link_port; did you mean link-port?",
        'port is a whole number, not "7443"',
        "workers: must be less than or equal to 64",
        "new-keys can't be in a file",
        "pool is a whole number, not true",
        "proxy-header: 'x-ip' is not one of",
        "advertise is empty: remove the line",
        "reads-per-s: must be greater than or equal to 0.5",
    ):
        assert f"error: {file}: {problem}" in said
    assert said.count("error: ") == 9, said


@pytest.mark.parametrize(
    ("service", "content", "said"),
    [
        ("server", "trusted-proxy = ['proxy']", "trusted-proxy: 'proxy' does not appear to be"),
        ("server", "require-second-factor = ['king']", "require-second-factor: king: no role"),
        ("agent", "pool = ['data=/nowhere']", "pool: '/nowhere' is no directory"),
        ("agent", "port = 1", "there is no setting port; did you mean dwcp-port?"),
        ("agent", "rejoin = '@/token'", "rejoin can't be in a file"),
        ("server", "port = ", "can't be read as TOML"),
        ("server", "[server]\nport = 1", "there is no setting server"),
    ],
)
def test_what_a_value_means_is_checked_too_and_named_as_in_the_file(
    file: Path, service: str, content: str, said: str
) -> None:
    file.write_text(content)
    (line, *more) = check(service, "--settings", str(file), expected=2)
    assert f"error: {file}" in " ".join(line) and said in " ".join(line)
    assert not more


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert check("agent", "--settings", str(tmp_path / "none"), expected=2)[0][:3] == ["error:", "can't", "read"]


def test_a_wrong_variable_is_named(file: Path) -> None:
    said = " ".join(check("server", expected=2, NOVACRON_SERVER_PORT="tcp://10.0.0.1:7443")[0])
    assert said.startswith("error: NOVACRON_SERVER_PORT: must be a valid integer")
    said = " ".join(check("server", expected=2, NOVACRON_SERVER_TRUSTED_PROXY="proxy")[0])
    assert said.startswith("error: NOVACRON_SERVER_TRUSTED_PROXY: 'proxy' does not appear")


def test_a_password_in_a_file_that_all_can_read_is_refused(file: Path) -> None:
    file.write_text('database = "postgresql://me:secret@db/novacron"')
    file.chmod(0o640)
    check("server", "--settings", str(file))
    file.chmod(0o644)
    said = " ".join(check("server", "--settings", str(file), expected=2)[0])
    assert f"chmod o-r {file}" in said and "secret" not in said


@pytest.mark.parametrize(("package", "options"), [(SERVER, ServerOptions), (AGENT, AgentOptions)])
def test_the_file_that_a_package_brings_has_every_setting_with_its_default(
    package: object, options: type, file: Path
) -> None:
    text = settings(SERVER if package is SERVER else AGENT)
    known = [setting for setting in settings_of(options) if setting.name not in ONCE]
    examples = tomllib.loads(
        "\n".join(line[1:] for line in text.splitlines() if line.startswith("#") and line[1] != " ")
    )
    assert {*examples, *tomllib.loads(text)} == {setting.name for setting in known}
    for setting in known:
        assert setting.help and setting.variables
        if setting.default is not None and setting.name in examples:
            assert setting.takes(examples[setting.name]), setting.name
    file.write_text(text)
    lines = check("server" if package is SERVER else "agent", "--settings", str(file))
    assert {line[-1] for line in lines[1:]} <= {"default", "file"}


def test_the_reference_lists_every_setting_with_its_variables() -> None:
    page = settings_page.page()
    for options in (ServerOptions, AgentOptions):
        for setting in settings_of(options):
            if setting.name not in ONCE:
                assert f"| `{setting.name}` | `{'`, `'.join(setting.variables)}` |" in page
