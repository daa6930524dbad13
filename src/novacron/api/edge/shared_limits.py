"""Rate limits that the API's processes share: each adds what callers spend here to the shared counters, and takes what
they spend elsewhere."""

from __future__ import annotations

import asyncio
import time

from novacron.api.access.shared_counters import Shared
from novacron.api.edge.rate_limits import Rates

TELL_S = 0.25
WINDOW_S = 2


async def share_rates(shared: Shared, rates: Rates) -> None:
    """Tell others what callers have spent here, and take what they have spent elsewhere, until cancelled."""
    own: dict[str, int] = {}
    others: dict[str, int] = {}
    window = 0
    while True:
        await asyncio.sleep(TELL_S)
        spent, rates.spent = rates.spent, {}
        now = int(time.time()) // WINDOW_S
        if now != window:
            own.clear()
            others.clear()
            window = now
        totals = await shared.add({f"rate:{window}:{key}": count for key, count in spent.items()}, WINDOW_S * 2)
        for key, count in spent.items():
            total = totals.get(f"rate:{window}:{key}")
            if total is None:
                continue
            own[key] = own.get(key, 0) + count
            elsewhere = total - own[key]
            rates.spend(key, max(0, elsewhere - others.get(key, 0)))
            others[key] = elsewhere
