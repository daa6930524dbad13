"""Secrets of authenticator apps are sealed anew while the key that seals them is being rotated."""

from __future__ import annotations

import asyncio

from novacron.api.access.second_factors import SecondFactorChecks
from novacron.model.errors import Unavailable
from novacron.store import second_factors
from novacron.store.database import Database
from novacron.telemetry import logs

log = logs.get(__name__)

LOOK_S = 10.0
"""How often to look: many times before a key that is not used any more can be retired."""
PAGE_MAX = 500


async def keep_sealed(checks: SecondFactorChecks, database: Database) -> None:
    """Seal what another key has sealed with the one in use, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        if checks.rotating:
            await seal_anew(checks, database)


async def seal_anew(checks: SecondFactorChecks, database: Database) -> int:
    """Seal the secrets of all apps with the key in use; return how many were not."""
    after, count = "", 0
    while True:
        async with database.transaction() as connection:
            page = await second_factors.apps(connection, after, PAGE_MAX)
            for factor in page:
                try:
                    sealed = checks.sealed_anew(factor)
                except Unavailable as error:  # of a key that is lost: its user is told so at the next login
                    log.warning("the secret of a second factor can't be opened", factor=factor.id, error=str(error))
                    continue
                if sealed is not None:
                    await second_factors.replace_secret(connection, factor, sealed)
                    count += 1
        if len(page) < PAGE_MAX:
            return count
        after = page[-1].id
