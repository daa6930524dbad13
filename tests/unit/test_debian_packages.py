"""The Debian packages' parts: units that systemd takes and that confine, scripts, settings, what is declared."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.debian.manifest import AGENT, CLI, HERE, PACKAGES, SERVER, Debian, Package, control, files, scripts
from novacron.local.doctor import machine

SERVICES = (SERVER, AGENT)
EXPOSURE_MAX = 3.0
"""Of the server, as ``systemd-analyze security`` counts it, from 0 to 10."""


def unit(package: Package) -> str:
    return (HERE / str(package.unit)).read_text()


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: the packages' test on Debian hosts looks at the units, too")
    return subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("package", SERVICES, ids=lambda package: package.name)
def test_systemd_finds_nothing_wrong_with_a_unit(package: Package, tmp_path: Path) -> None:
    copy = tmp_path / str(package.unit)
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit(package), flags=re.MULTILINE))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(copy))
    assert done.returncode == 0 and str(package.unit) not in done.stderr, done.stderr


def test_the_servers_unit_confines_it() -> None:
    limit = f"--threshold={EXPOSURE_MAX * 10:.0f}"
    done = analyze("security", "--offline=true", "--no-pager", limit, str(HERE / str(SERVER.unit)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_databases_unit_is_valid_and_confined(tmp_path: Path) -> None:
    source = HERE / "novacron-database.service"
    copy = tmp_path / source.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", source.read_text(), flags=re.MULTILINE))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(copy))
    assert done.returncode == 0 and source.name not in done.stderr, done.stderr
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX * 10:.0f}", str(source))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_killed_patroni_leaves_no_postgresql_behind() -> None:
    assert "KillMode=mixed" in (HERE / "novacron-database.service").read_text().splitlines()


def test_the_agents_unit_ends_nothing_but_the_agent() -> None:
    lines = unit(AGENT).splitlines()
    assert {"KillMode=process", "OOMPolicy=continue", "TasksMax=infinity"} <= set(lines)
    own_mounts = re.compile(r"(Protect(System|Home|Proc|Kernel\w+|ControlGroups|Hostname)|Private\w+|ReadOnlyPaths)=")
    assert not [line for line in lines if own_mounts.match(line)], "VMs' networks and mounts must outlive the agent"


@pytest.mark.parametrize("package", SERVICES, ids=lambda package: package.name)
def test_a_unit_starts_what_its_package_brings(package: Package) -> None:
    command = re.search(r"^ExecStart=(\S+) (server|agent) --settings (\S+)$", unit(package), re.MULTILINE)
    assert command is not None
    assert command.groups() == (
        f"{package.root}/bin/novacron",
        package.environment,
        f"/etc/novacron/{package.settings}",
    )
    assert {"Type=notify", "NotifyAccess=main", "RestartPreventExitStatus=2"} <= set(unit(package).splitlines())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_scripts_are_complete_and_a_shell_reads_them(package: Package) -> None:
    for name, text in scripts(package):
        assert not re.search(r"@[A-Z_]+@", text), name
        assert text.startswith("#!/bin/sh\n") and "\nset -e\n" in text
        done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert ("deb-systemd" in text) is (package.unit is not None), name


def test_the_agent_declares_the_programs_that_it_needs() -> None:
    needed, optional = ({package for _, package in found.values()} for found in (machine.PROGRAMS, machine.OPTIONAL))
    assert needed | {"qemu-system-x86", "iproute2"} <= set(AGENT.depends)
    assert optional <= set(AGENT.recommends)


def test_a_package_is_for_the_python_of_one_release() -> None:
    for debian, python in ((Debian.DEBIAN_12, "python3.11"), (Debian.DEBIAN_13, "python3.13")):
        text = control(SERVER, debian, f"0.1.0-1+deb{debian}", 5)
        assert f"Depends: {python}, " in text and f"Version: 0.1.0-1+deb{debian}\n" in text
        assert text.splitlines()[-2].startswith("Description: ") and text.splitlines()[-1].startswith(" ")


def test_files_go_where_debian_wants_them() -> None:
    paths = {package.name: {file.path: file.mode for file in files(package)} for package in PACKAGES}
    assert paths[CLI.name]["/usr/bin/novacron"] == 0o755
    assert paths[SERVER.name]["/etc/novacron/server.toml"] == 0o640, "it may hold a password"
    assert "/usr/lib/sysusers.d/novacron-server.conf" in paths[SERVER.name]
    assert "/usr/lib/systemd/system/novacron-agent.service" in paths[AGENT.name]
    alone = [set(files) for files in paths.values()]
    assert not alone[0] & alone[1] and not alone[1] & alone[2] and not alone[0] & alone[2], (
        "each file is in one package"
    )


def test_the_command_runs_with_the_packages_that_its_subcommand_needs(tmp_path: Path) -> None:
    for environment in ("server", "agent", "cli"):
        program = tmp_path / environment / "bin/novacron"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho {environment}\n")
        program.chmod(0o755)
    command = tmp_path / "novacron"
    command.write_text((HERE / "novacron").read_text().replace("/opt/novacron", str(tmp_path)))
    for words, environment in (
        ("server", "server"),
        ("database", "server"),
        ("agent", "agent"),
        ("runbook", "cli"),
        ("setup server", "server"),
        ("setup agent", "agent"),
        ("setup database", "server"),
        ("setup", "server"),
    ):
        done = subprocess.run(["sh", command, *words.split()], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"{environment}\n", words
