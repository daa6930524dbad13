"""Point-in-time recovery: a base backup is brought to a moment with the WAL that was archived after it.

All of it happens in a folder beside the database's own, which is moved aside only when the recovered one has been
started, has reached its target, and was stopped. See PostgreSQL's manual, "Continuous Archiving and Point-in-Time
Recovery".
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from novacron.backup import disks
from novacron.backup.errors import RepositoryError
from novacron.backup.repository import Repository
from novacron.child_environment import clean
from novacron.local import database_archive, database_wal
from novacron.local.database_archive import BaseBackup
from novacron.local.database_backup import (
    ID_SHOWN,
    BackupFailed,
    BackupPlace,
    DatabaseBackup,
    explained,
    fetch,
    find_stored,
    open_repository,
    stored_backups,
)
from novacron.local.database_wal import Coverage, WalFile
from novacron.local.postgres import Postgres, leave_cluster, programs

MARGIN = timedelta(minutes=5)
"""WAL that was stored so long after the target is fetched at first: somewhere in it is what is later."""
RECOVERY_S_MAX = 12 * 3600.0
POLL_S = 0.1
STOP_S_MAX = 600.0
READY = "ready"
"""In ``postmaster.pid``, once it is no standby and no recovery is under way."""
TOO_SHORT = "recovery ended before configured recovery target was reached"
LAST = re.compile(r"last completed transaction was at log time (\S+ \S+)")
REDONE = re.compile(r"redo done at ([0-9A-F]+/[0-9A-F]+)")
LOG_SHOWN = 1500


class Restorable(NamedTuple):
    """A base backup, and how far it can be brought."""

    backup: DatabaseBackup
    base: BaseBackup | None
    """None: it does not say what it is, and can be restored as it is only."""
    timeline: int
    coverage: Coverage

    @property
    def until(self) -> datetime:
        """The latest time that can be restored from it."""
        return max(self.backup.at, self.coverage.until or self.backup.at)


class Recovery(NamedTuple):
    """What to restore."""

    source: Restorable
    target: datetime | None
    """None: all that was archived."""
    as_it_is: bool = False
    """The base backup alone, without what was archived after it."""

    @property
    def moment(self) -> datetime:
        """What was committed later is lost."""
        if self.as_it_is:
            return self.source.backup.at
        return self.source.until if self.target is None else self.target

    @property
    def wal_bytes(self) -> int:
        """Room for the WAL that is put beside the base backup: at most all of it at once."""
        if self.as_it_is or self.source.base is None:
            return 0
        return len(self.source.coverage.files) * self.source.base.segment_bytes


class RecoveredDatabase(NamedTuple):
    """What was restored."""

    last_transaction: datetime | None
    """When the last transaction that is in it was committed; None: none since the base backup."""
    kept: Path | None
    """Where the database of before is."""


def restorable(place: BackupPlace, timeline: int | None = None) -> list[Restorable]:
    """Return all base backups, the latest last, each with how far it can be brought. Raises BackupFailed."""
    with explained():
        return _restorable(open_repository(place), timeline)


def _restorable(repository: Repository, timeline: int | None) -> list[Restorable]:
    archives = dict[str, database_archive.WalArchive]()
    restorable = list[Restorable]()
    for made in stored_backups(repository):
        try:
            base = database_archive.base_of(repository, made.id)
            if base.cluster not in archives:
                archives[base.cluster] = database_archive.WalArchive(repository, base.cluster)
            source = _covered(repository, archives[base.cluster], made, base, timeline)
            if timeline is None or source.timeline == timeline:
                restorable.append(source)
        except RepositoryError:  # what is wrong with it is said when it is verified or restored
            restorable.append(Restorable(made, None, 1, Coverage((), None)))
    return restorable


def _covered(
    repository: Repository, archive: database_archive.WalArchive, made: DatabaseBackup, base: BaseBackup,
    timeline: int | None,
) -> Restorable:  # fmt: skip
    target = timeline or database_archive.newest_timeline(archive.files, base.timeline)
    for candidate in dict.fromkeys((target, base.timeline)):
        history = database_archive.history(repository, archive.files, candidate)
        coverage = database_wal.coverage(base.stop, base.timeline, history, archive.files, base.segment_bytes)
        if coverage is not None:
            return Restorable(made, base, candidate, coverage)
    return Restorable(made, base, base.timeline, Coverage((), None))


def choose(place: BackupPlace, target: datetime | None, timeline: int | None = None) -> Recovery:
    """Choose the base backup and the WAL for a time; None: the latest. Raises BackupFailed, also for a time that can't
    be restored."""
    with explained():
        every = _restorable(open_repository(place), timeline)
    if not every:
        along = "" if timeline is None else f" on timeline {timeline}"
        raise BackupFailed(f"the repository contains no database backup{along}: see novacron database list")
    if target is None:
        return Recovery(max(every, key=lambda source: (source.until, source.backup.at)), None)
    if target > datetime.now(UTC):
        raise BackupFailed(f"{shown(target)} is in the future: {_ranges(every)}")
    fitting = [source for source in every if source.backup.at <= target <= source.until and source.base is not None]
    if not fitting:
        raise BackupFailed(f"the database can't be restored as it was at {shown(target)}: {_ranges(every)}")
    return Recovery(fitting[-1], target)


def choose_backup(place: BackupPlace, id: str) -> Recovery:
    """Choose a base backup by the beginning of its id, to be restored as it is. Raises BackupFailed."""
    with explained():
        repository = open_repository(place)
        made = find_stored(repository, id)
        return Recovery(next(source for source in _restorable(repository, None) if source.backup == made), None, True)


def ranges(every: Sequence[Restorable]) -> list[tuple[datetime, datetime]]:
    """Return the stretches of time that can be restored, in order."""
    merged = list[tuple[datetime, datetime]]()
    for source in every:
        if merged and source.backup.at <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], source.until))
        else:
            merged.append((source.backup.at, source.until))
    return merged


def _ranges(every: Sequence[Restorable]) -> str:
    texts = [shown(begin) if begin == end else f"{shown(begin)} to {shown(end)}" for begin, end in ranges(every)]
    return f"what can be restored is {', '.join(texts)}"


def shown(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def restore(place: BackupPlace, state_dir: Path, recovery: Recovery) -> RecoveredDatabase:
    """Recover a database and put it in the place of the embedded one of a server that is stopped. Raises
    BackupFailed."""
    with explained():
        postgres = Postgres(state_dir / "postgres")
        with postgres.held():
            fresh = postgres.directory / "data.restored"
            shutil.rmtree(fresh, ignore_errors=True)
            try:
                repository = open_repository(place)
                fetch(repository, recovery.source.backup, fresh)
                leave_cluster(fresh)
                last = _recover(repository, recovery, fresh, postgres)
                return RecoveredDatabase(last, postgres.replace(fresh))
            finally:
                shutil.rmtree(fresh, ignore_errors=True)


def verify_wal(place: BackupPlace, source: Restorable) -> int:
    """Read all WAL back that follows a base backup; return how many files. Raises BackupFailed."""
    with explained(), tempfile.TemporaryDirectory(prefix="novacron-verify-") as scratch:
        repository = open_repository(place)
        for file in source.coverage.files:
            _fetch_wal(repository, file, Path(scratch)).unlink()
        return len(source.coverage.files)


def _recover(repository: Repository, recovery: Recovery, data: Path, postgres: Postgres) -> datetime | None:
    """Bring a fetched base backup to the target; return when its last transaction was committed."""
    source, target = recovery.source, recovery.target
    if source.base is None:
        raise BackupFailed(f"backup {source.backup.id[:ID_SHOWN]} does not say what it is a backup of")
    _check_version(source.base)
    files = [] if recovery.as_it_is else list(source.coverage.files)
    _fetch_histories(repository, source.base, data)
    first = len(files) if target is None else _enough(files, target)
    _fetch_all(repository, files[:first], data)
    server = _RecoveringServer(data, postgres, source.base.timeline if recovery.as_it_is else source.timeline)
    if recovery.as_it_is:
        return _last_transaction(server.run(None, as_it_is=True))
    if target is not None:
        words = server.run(target)
        if TOO_SHORT in words and first < len(files):
            _fetch_all(repository, files[first:], data)
            words = server.run(target)
        if TOO_SHORT not in words:
            return _last_transaction(words)
        # Nothing was committed after the target, so all that there is, is what there was then.
    words = server.run(None)
    _check_end(words, source)
    return _last_transaction(words)


def _enough(files: Sequence[WalFile], target: datetime) -> int:
    """Return how many files to begin with."""
    late = [number for number, file in enumerate(files, 1) if file.until > target + MARGIN]
    return late[0] if late else len(files)


def _check_version(base: BaseBackup) -> None:
    arguments = [str(programs() / "postgres"), "--version"]
    done = subprocess.run(arguments, capture_output=True, check=True, text=True, env=clean())
    own = done.stdout.split()[-1].partition(".")[0]
    if base.major_version != own:
        raise BackupFailed(
            f"the backup is of PostgreSQL {base.major_version}, the embedded one is {own}: restore its files with"
            f" restic, and recover them with PostgreSQL {base.major_version}"
        )


def _fetch_histories(repository: Repository, base: BaseBackup, data: Path) -> None:
    """Let PostgreSQL know all timelines that there were: the one that begins now must be another."""
    archive = database_archive.WalArchive(repository, base.cluster)
    _fetch_all(repository, [file for name, file in archive.files.items() if database_wal.HISTORY.match(name)], data)


def _fetch_all(repository: Repository, files: Sequence[WalFile], data: Path) -> None:
    """Put WAL files where PostgreSQL finds them. Raises BackupFailed, RepositoryError."""
    for file in files:
        _fetch_wal(repository, file, data / "pg_wal")


def _fetch_wal(repository: Repository, file: WalFile, directory: Path) -> Path:
    path = directory / file.name.removesuffix(database_wal.PARTIAL)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        disks.restore_disk(repository, database_archive.content(repository, file), descriptor)
        os.fsync(descriptor)
    except RepositoryError as error:
        raise BackupFailed(
            f"the WAL file {file.name} (snapshot {file.snapshot[:8]}) is damaged: {error};"
            " an earlier time may still be restorable: choose it with --to"
        ) from error
    finally:
        os.close(descriptor)
    return path


def _last_transaction(words: str) -> datetime | None:
    times = LAST.findall(words)
    return datetime.fromisoformat(times[-1]) if times else None


def _check_end(words: str, source: Restorable) -> None:
    """Raise BackupFailed if PostgreSQL stopped before the last segment that is full."""
    assert source.base is not None
    whole = [file.name for file in source.coverage.files if not database_wal.is_partial(file.name)]
    redone = REDONE.findall(words)
    size = source.base.segment_bytes
    if whole and redone and database_wal.lsn(redone[-1]) // size < database_wal.number_of(whole[-1], size):
        last = _last_transaction(words)
        raise BackupFailed(
            f"PostgreSQL can't read the WAL after {redone[-1]}: choose an earlier time with --to"
            + (f", up to {shown(last)}" if last else "")
        )


class _RecoveringServer:
    """A PostgreSQL that recovers, with no port and with settings of ours alone."""

    def __init__(self, data: Path, postgres: Postgres, timeline: int) -> None:
        self._data, self._postgres = data, postgres
        (data / "recovery.signal").touch(mode=0o600)
        self._settings = {
            "config_file": data / "novacron-recovery.conf", "hba_file": data / "novacron-recovery.hba",
            "listen_addresses": "", "unix_socket_directories": data, "unix_socket_permissions": "0700",
            "hot_standby": "off", "archive_mode": "off", "wal_recycle": "off", "restore_command": "/bin/false",
            "recovery_target_timeline": timeline, "recovery_target_action": "promote", "log_min_messages": "log",
            "log_timezone": "UTC", "lc_messages": "C", "log_destination": "stderr", "logging_collector": "off",
            "log_line_prefix": "",
        }  # fmt: skip

    def run(self, target: datetime | None, *, as_it_is: bool = False) -> str:
        """Recover, and stop; return what PostgreSQL said. Raises BackupFailed, unless it said that WAL lacked."""
        settings = dict(self._settings)
        if target is not None:
            settings["recovery_target_time"] = target.astimezone(UTC).isoformat()
        if as_it_is:
            settings["recovery_target"] = "immediate"
        with self._files(), tempfile.TemporaryFile() as log:
            process = self._postgres.launch_on(self._data, {k: str(v) for k, v in settings.items()}, log)
            try:
                is_ready = self._wait_ready(process)
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_S_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            log.seek(0)
            words = log.read().decode(errors="replace")
        if not is_ready and TOO_SHORT not in words:
            raise BackupFailed(f"PostgreSQL could not recover the backup: {words.strip()[-LOG_SHOWN:]}")
        return words

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        """Have files of settings with which nobody can connect, and no others: not those of ALTER SYSTEM."""
        altered, aside = self._data / "postgresql.auto.conf", self._data / "novacron-recovery.auto"
        if altered.exists():
            altered.rename(aside)
        files = {self._settings["config_file"]: "", self._settings["hba_file"]: "local all all reject\n"}
        for path, content in files.items():
            Path(str(path)).write_text(content)
        try:
            self._postgres.own(self._data)
            yield
        finally:
            for path in files:
                Path(str(path)).unlink()
            if aside.exists():
                aside.rename(altered)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until recovery is over; return False if PostgreSQL has ended before."""
        deadline = time.monotonic() + RECOVERY_S_MAX
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, IndexError):
                if (self._data / "postmaster.pid").read_text().splitlines()[7].strip() == READY:
                    return True
            if time.monotonic() > deadline:
                raise BackupFailed(f"PostgreSQL did not recover the backup within {RECOVERY_S_MAX / 3600:.0f} h")
            time.sleep(POLL_S)
        return False
