"""Changes that are made of what an object is now, such as one entry of a list that the API replaces as a whole."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from novacron.cli.output import Object
from novacron.client import ApiError, Client
from novacron.client.protocol import quoted

ATTEMPTS_MAX = 8
PAUSE_S = 0.05
STALE = 412


def update(client: Client, kind: str, ref: str, changes_of: Callable[[Object], Object]) -> Object:
    """Change an object by what it is, and anew by what it then is if something else changed it meanwhile.

    Raises ApiError, Unreachable, and what ``changes_of`` raises.
    """
    for attempt in range(1, ATTEMPTS_MAX + 1):
        current = client.get(kind, ref)
        path, match = f"/api/v1/{kind}/{quoted(ref)}", f'"{current["revision"]}"'
        try:
            changed: Object = client.request("PATCH", path, changes_of(current), None, If_Match=match)
        except ApiError as error:
            if error.status != STALE or attempt == ATTEMPTS_MAX:
                raise
            time.sleep(random.uniform(0, PAUSE_S * 2**attempt))  # noqa: S311 - so that two do not meet again
        else:
            return changed
    raise AssertionError("the last attempt returns or raises")
