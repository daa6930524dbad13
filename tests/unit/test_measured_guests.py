"""Guests that somebody brings to a benchmark: what they are made of, and what is wrong with one, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.measured_guests import GuestInvalid, Workload, brought

GOOD = "memory_mib = 256\nrandom_mib = 2\nworkload = [4, 100, 50]\n"


def directory(tmp_path: Path, settings: str = GOOD, name: str = "mine") -> Path:
    path = tmp_path / name
    (path / "files" / "below").mkdir(parents=True)
    (path / "files" / "a").write_bytes(b"a" * 100)
    (path / "files" / "below" / "b").write_bytes(b"b" * 100)
    (path / "guest.toml").write_text(settings)
    return path


def test_a_guest_is_made_of_a_directory(tmp_path: Path) -> None:
    guest = brought(directory(tmp_path))
    assert (guest.name, guest.memory_mib, guest.random_mib, guest.workload) == ("mine", 256, 2, Workload(4, 100, 50))
    assert guest.files() == {"data/0-a": b"a" * 100, "data/1-b": b"b" * 100}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("memory_mib =", "is no TOML"),
        (GOOD.replace("256", "64"), "memory_mib has to be a number from 128"),
        (GOOD.replace("256", "true"), "memory_mib has to be a number"),
        (GOOD.replace("random_mib = 2", ""), "random_mib has to be a number from 0 to 256, and is None"),
        (GOOD.replace("[4, 100, 50]", "[4, 100]"), "workload has to be three numbers"),
        (GOOD.replace("[4, 100, 50]", "[4, 100, 101]"), "workload: 4 MiB of 256 are written, 101 % whole"),
        (GOOD.replace("[4, 100, 50]", "[400, 100, 50]"), "workload: 400 MiB of 256"),
    ],
)
def test_the_error_names_what_is_wrong_with_a_guest(tmp_path: Path, settings: str, why: str) -> None:
    with pytest.raises(GuestInvalid, match=why):
        brought(directory(tmp_path, settings))


def test_a_guest_without_settings_files_or_a_usable_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestInvalid, match=r"can.t be read.*for example"):
        brought(tmp_path)
    with pytest.raises(GuestInvalid, match="lower-case letters"):
        brought(directory(tmp_path, name="My guest"))
    empty = directory(tmp_path, name="empty")
    for path in ("files/a", "files/below/b"):
        (empty / path).unlink()
    with pytest.raises(GuestInvalid, match="holds 0 MB"):
        brought(empty)
    large = directory(tmp_path, name="large")
    with (large / "files" / "c").open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(GuestInvalid, match="in memory twice"):
        brought(large)
