"""restic itself, for what it alone does to a repository: it frees the room of what no snapshot has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from novacron import child_environment
from novacron.backup.errors import NotAllowed, RepositoryError
from novacron.backup.places import Place, storage_at
from novacron.backup.s3_address import S3Address
from novacron.backup.storage import Kind

END_S_MAX = 15.0
"""How long restic may take to give its lock up."""
WORDS_MAX = 300
NO_PACK = "0" * 64
"""A name that no pack has."""
FREED = re.compile(r"^total prune:.*/ +([0-9.]+ \S+)\s*$", re.MULTILINE)


class PruneLimits(NamedTuple):
    """How far one run goes."""

    seconds: float
    unused: str = "5%"
    """Packs of which less is unused may stay as they are."""
    repacked: str = "50G"
    """How much is written anew at most."""


class _Target(NamedTuple):
    """How restic is told of a repository."""

    arguments: list[str]
    environment: Mapping[str, str]


async def prune(place: Place, password: bytes, limits: PruneLimits) -> str:
    """Let restic take out of a repository what no snapshot has; return how much room it says that this frees, in words.

    Raises RepositoryError, OSError, TimeoutError.
    """
    if shutil.which("restic") is None:
        raise RepositoryError(
            "restic is not installed, which frees the space of deleted backups: apt-get install restic"
        )
    await asyncio.to_thread(_check_rights, place)
    target = _target(place)
    await _run(target, password, limits.seconds, "unlock")  # locks of processes that are gone, no others
    options = ("--max-unused", limits.unused, "--repack-small", "--max-repack-size", limits.repacked)
    freed = FREED.search(await _run(target, password, limits.seconds, "prune", *options))
    return freed[1][:WORDS_MAX] if freed else ""


def _check_rights(place: Place) -> None:
    """Find out before restic writes much. Raises NotAllowed, RepositoryError."""
    try:
        storage_at(place).remove(Kind.PACK, NO_PACK)
    except NotAllowed as error:
        raise NotAllowed(f"the credentials of this host don't allow deleting: prune where they do ({error})") from error


def _target(place: Place) -> _Target:
    """Return restic's arguments and environment for a repository. Raises BadAddress."""
    if isinstance(place, Path):
        return _Target(["--repo", str(place)], {})
    certificates = [] if place.ca_file is None else ["--cacert", str(place.ca_file)]
    if isinstance(place, S3Address):
        endpoint = place.endpoint or f"https://s3.{place.region}.amazonaws.com"
        lookup = "dns" if place.bucket_in_host else "path"
        key = place.credentials()
        environment = {
            "AWS_ACCESS_KEY_ID": key.key, "AWS_SECRET_ACCESS_KEY": key.secret, "AWS_DEFAULT_REGION": place.region,
            **({} if key.token is None else {"AWS_SESSION_TOKEN": key.token}),
        }  # fmt: skip
        repository = f"s3:{endpoint}/{place.bucket}/{place.prefix}"
        return _Target(["--repo", repository, "-o", f"s3.bucket-lookup={lookup}", *certificates], environment)
    login = place.credentials()
    user = {} if login is None else {"RESTIC_REST_USERNAME": login.user, "RESTIC_REST_PASSWORD": login.password}
    return _Target(["--repo", f"rest:{place.server}/{place.path}/", *certificates], user)


async def _run(target: _Target, password: bytes, limit_s: float, *arguments: str) -> str:
    """Run restic on a repository, as low as it goes, and return what it says. The password comes in memory; restic
    ends with whoever began it. Raises RepositoryError, OSError, TimeoutError."""
    memory = os.memfd_create("password")
    try:
        os.write(memory, password)
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "TERM", "--", "nice", "-n", "10", "ionice", "-c", "3", "restic", "--no-cache",
            *target.arguments, "--password-file", f"/proc/self/fd/{memory}", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            pass_fds=(memory,), env=child_environment.clean(target.environment), cwd="/",
        )  # fmt: skip
    finally:
        os.close(memory)
    try:
        async with asyncio.timeout(limit_s):
            said, _ = await process.communicate()
    except TimeoutError:
        raise TimeoutError(f"restic {arguments[0]} took longer than {limit_s / 3600:.1f} hours") from None
    finally:
        await _end(process)
    text = said.decode(errors="replace")
    if process.returncode != 0:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1]
        raise RepositoryError(f"restic {arguments[0]} failed: {last[:WORDS_MAX]}")
    return text


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs, so that it gives its lock up."""
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_S_MAX)
