"""What a listing of ``grub-fstest`` says, of file systems that may lie."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from novacron.disk.file_systems import parent, read_entries, read_systems
from novacron.model.backup_files import BackupEntry, BackupFileSystem

DEVICES = """Device proc: Filesystem type procfs - Sector size 512B - Total size 0KiB
Device loop0: No known filesystem detected - Sector size 512B - Total size 716800KiB
\tPartition loop0,msdos2: Filesystem type btrfs, UUID 502e3ce7-5438 - Partition start at 328704KiB - Total size 327680KiB
\tPartition loop0,msdos1: Filesystem type ext* - Label `a; rm -rf' - Last modification time 2026-12-01 01:31:17 Tuesday, UUID 2e16af7a-b637 - Partition start at 1024KiB - Total size 327680KiB
Device lvm/debian--vg-root: Filesystem type xfs - Label `root', UUID 12ab - Sector size 512B - Total size 1024KiB
Device host: Filesystem type hostfs - Sector size 512B - Total size 0KiB
"""  # noqa: E501 - as the program prints it
TIME = datetime(2026, 12, 1, 1, 28, 39, tzinfo=UTC)


def test_file_systems_are_those_of_the_disk() -> None:
    assert read_systems(DEVICES) == [
        BackupFileSystem("lvm/debian--vg-root", "xfs", "root", "12ab", 1 << 20),
        BackupFileSystem("msdos1", "ext*", "a; rm -rf", "2e16af7a-b637", 320 << 20),
        BackupFileSystem("msdos2", "btrfs", "", "502e3ce7-5438", 320 << 20),
    ]


def test_a_disk_without_partitions_is_called_disk() -> None:
    (system,) = read_systems("Device loop0: Filesystem type ext* - Label `x' - Total size 4KiB\n")
    assert (system.name, system.label) == ("disk", "x")


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (
            "3145728      20261201012839 big",
            BackupEntry("big", is_directory=False, size_bytes=3145728, modified_at=TIME),
        ),
        ("DIR          20261201012839 deep/", BackupEntry("deep", is_directory=True, modified_at=TIME)),
        ("4            20261201012839 a b", BackupEntry("a b", is_directory=False, size_bytes=4, modified_at=TIME)),
        ("DIR         timeless/", BackupEntry("timeless", is_directory=True)),
        ("12345       77 a", BackupEntry("77 a", is_directory=False, size_bytes=12345)),
        ("4            99999999999999 x", BackupEntry("x", is_directory=False, size_bytes=4)),
    ],
)
def test_entries_have_size_and_time(line: str, entry: BackupEntry) -> None:
    assert read_entries(f"{line}\n\n") == [entry]


@pytest.mark.parametrize("name", [".", "..", "../../etc/passwd", "/etc/passwd", "a\x1b[2J", "a\x7f", "", "a\nb"])
def test_a_name_that_leads_elsewhere_or_is_no_name_is_left_out(name: str) -> None:
    assert read_entries(f"4            20261201012839 {name}\n") == []


def test_paths_are_taken_apart() -> None:
    assert parent("/") == ("/", "") and parent("/a") == ("/", "a") and parent("//a//b/") == ("/a", "b")
