"""The CLI's settings: several contexts in one file, none of which is lost."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from novacron import context_file
from novacron.client import Unreachable, load_config
from novacron.context_file import Context, SettingsError

EAST, WEST = Context("https://east:7443", "nva_east", "PEM", "blue"), Context("https://west:7443", "nva_west")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("URL", "TOKEN", "PROJECT", "CONTEXT"):
        monkeypatch.delenv(f"NOVACRON_{name}", raising=False)
    path = tmp_path / "new" / "config.json"
    monkeypatch.setenv("NOVACRON_CONFIG", str(path))
    return path


def filled(path: Path) -> None:
    with context_file.changing(path) as contexts:
        contexts.add("east", EAST)
        contexts.add("west", WEST)


def test_contexts_are_read_as_they_were_written_and_the_first_is_used(path: Path) -> None:
    filled(path)
    contexts = context_file.read(path)
    assert contexts.names() == ["east", "west"] and contexts.current == "east"
    assert contexts.get("east") == EAST and contexts.get("west") == WEST
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert tuple(load_config()) == tuple(EAST[:4])


def test_the_environment_names_the_context_or_overrides_what_it_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    monkeypatch.setenv("NOVACRON_CONTEXT", "west")
    assert tuple(load_config()) == tuple(WEST[:4])
    monkeypatch.setenv("NOVACRON_PROJECT", "red")
    assert load_config().project == "red"
    monkeypatch.setenv("NOVACRON_CONTEXT", "north")
    with pytest.raises(Unreachable, match=r"there is no context 'north' in .*; there are: east, west"):
        load_config()


def test_a_file_of_an_earlier_version_is_read_and_carried_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(EAST._asdict()))
    assert tuple(load_config()) == tuple(EAST[:4])
    with context_file.changing(path) as contexts:
        assert contexts.add_beside("default", WEST) == "default-2"
    contexts = context_file.read(path)
    assert contexts.current == "default" and contexts.get("default") == EAST and contexts.get("default-2") == WEST


def test_no_context_is_replaced_unasked(path: Path) -> None:
    filled(path)
    with pytest.raises(SettingsError, match="context east exists"), context_file.changing(path) as contexts:
        contexts.add("east", WEST)
    with pytest.raises(SettingsError, match="context west exists"), context_file.changing(path) as contexts:
        contexts.rename("east", "west")
    assert context_file.read(path).get("east") == EAST
    with context_file.changing(path) as contexts:
        contexts.rename("east", "home")
        contexts.remove("west")
    contexts = context_file.read(path)
    assert contexts.names() == ["home"] and contexts.current == "home"
    with context_file.changing(path) as contexts:
        contexts.remove("home")
    assert context_file.read(path).current == ""
    with pytest.raises(Unreachable, match="novacron context use"):
        load_config()


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "nonsense",
        "[]",
        '{"contexts": []}',
        '{"contexts": {"a": 1}}',
        '{"contexts": {"a": {"url": 1}}}',
        '{"url": 5}',
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(path: Path, damaged: str) -> None:
    path.parent.mkdir()
    path.write_text(damaged)
    with pytest.raises(SettingsError, match="can't read the settings"), context_file.changing(path) as contexts:
        contexts.add("east", EAST)
    assert path.read_text() == damaged
    with pytest.raises(Unreachable, match="mend the file"):
        load_config()


@pytest.mark.parametrize("name", ["", "a b", "-x", "a/b", "x" * 64])
def test_names_of_contexts_are_simple(path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="is no name of a context"), context_file.changing(path) as contexts:
        contexts.add(name, EAST)
    assert not path.exists()


def test_a_link_to_the_settings_stays_one(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere.json")
    filled(path)
    assert path.is_symlink() and context_file.read(tmp_path / "elsewhere.json").names() == ["east", "west"]


def add_ten(path: Path, first: int) -> None:
    for number in range(first, first + 10):
        with context_file.changing(path) as contexts:
            contexts.add_beside("host", Context(f"https://host-{number}", "token"))


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=add_ten, args=(path, 10 * number)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(context_file.read(path).names()) == 40
