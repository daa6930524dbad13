"""A server that counts neither requests nor queries, to compare with one that does."""

from __future__ import annotations

import time
from typing import Any

from novacron.__main__ import main
from novacron.api.edge.admission import Door
from novacron.api.read_model.principals import Caller
from novacron.store.database import PooledConnection


def _called(
    self: Door, scope: Any, method: str, status: int, started: float, caller: Caller | None, address: str, route: str,
    id: str = "-",
) -> None:  # fmt: skip
    who = scope.get("user") if caller is None else caller
    name = who.name if isinstance(who, Caller) else "-"
    took_s = time.perf_counter() - started
    self._services.recorder.called(method, route, status, took_s, name, address, id, scope["path"])


if __name__ == "__main__":
    Door._called = _called  # type: ignore[method-assign]
    for name in ("execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_records_to_table"):
        delattr(PooledConnection, name)
    main()
