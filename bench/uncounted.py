"""A server that counts neither requests nor queries, to compare with one that does."""

from __future__ import annotations

import time

from novacron.__main__ import main
from novacron.api.access.recorder import CompletedCall
from novacron.api.edge.admission import Admission, _Request
from novacron.api.read_model.principals import Caller
from novacron.store.database import PooledConnection


def _completed(self: Admission, request: _Request, status: int, route: str) -> None:
    caller = request.scope.get("user") if request.caller is None else request.caller
    name = caller.name if isinstance(caller, Caller) else "-"
    took_s = time.perf_counter() - request.started
    self._services.recorder.called(
        CompletedCall(request.method, route, status, took_s, name, request.address, request.id, request.path)
    )


if __name__ == "__main__":
    Admission._completed = _completed  # type: ignore[method-assign]
    for name in ("execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_records_to_table"):
        delattr(PooledConnection, name)
    main()
