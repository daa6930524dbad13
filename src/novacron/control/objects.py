"""Reconciles the objects of a controller one by one, so that none of them can stop the others.

The contract of a reconciler, ``reconcile(key)``, is that of Kubernetes' controller-runtime:

* It gets a key, reads the object's present state itself, compares it with the desired one, and acts.
* It may be repeated at any time, and is: after every change, after an interval, and after a failure.
* It may be cancelled at any ``await`` (its time limit, the end of the process). What must not be half done happens in
  one transaction, which checks its own premises.
* It returns when there is nothing left to do now, and raises when it failed. Whatever it raises concerns this object
  alone: it is counted, logged, and tried again after a back-off that doubles with each failure up to a maximum.
* Only one call for a key runs at a time.
* An unreachable database is nobody's fault: after a few such failures in a row the pass ends with ``Unavailable``,
  and those objects are not held back for it.

The same ideas, as code: ``sigs.k8s.io/controller-runtime/pkg/internal/controller/controller.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from novacron.model.errors import NovaError, Unavailable
from novacron.store.database import Overtaken
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

RECONCILE_S_MAX = 30.0
"""Time limit of one reconciliation."""
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.5, 60.0
UNAVAILABLE_IN_A_ROW_MAX = 3
"""Objects that fail in a row for want of the database, before the pass ends."""
FAILING_MAX = 100_000
"""Objects whose failures are remembered; one beyond that is tried again without a back-off."""
NAMED_MAX = 5
"""Failing objects that one log line names."""

T = TypeVar("T")
Reconcile = Callable[[str], Awaitable[T]]


class FailingObject(msgspec.Struct):
    """Why an object fails, and when it is tried again, on the clock of ``Objects``."""

    error: str
    tries: int
    retry_at: float


class Objects:
    """The objects of one controller: runs its reconciler for each, and remembers which ones fail."""

    def __init__(
        self, controller: str, *, limit_s: float = RECONCILE_S_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._controller, self._limit_s, self._clock = controller, limit_s, clock
        self._failures: dict[str, FailingObject] = {}
        self._seen: set[str] = set()
        self._failed: list[tuple[str, Exception]] = []
        """In this pass."""
        self._unavailable: list[str] = []
        """Keys that have failed one after another for want of the database."""
        self.unfinished = False
        """The pass has not come to all objects: the next one follows at once."""
        self._results = counter("novacron_controller_objects_total")
        self._running: dict[str, asyncio.Task[None]] = {}
        """What was started, by key."""

    def failure(self, key: str) -> str | None:
        """Return the error with which an object failed last, None if it did not."""
        failure = self._failures.get(key)
        return None if failure is None else failure.error

    def resting(self) -> list[str]:
        """Return the objects that are not to be tried yet, for callers that take only some of all objects."""
        resting = [key for key, failure in self._failures.items() if failure.retry_at > self._clock()]
        self._seen.update(resting)
        return resting

    def due_in_s(self) -> float | None:
        """Return after how many seconds a failed object is to be tried again, or the pass to go on; None: neither."""
        if self.unfinished:
            return 0.0
        now = self._clock()
        # What is overdue while tasks run is theirs, and otherwise waits for the next pass.
        due = [failure.retry_at for failure in self._failures.values() if failure.retry_at > now or not self._running]
        return max(0.0, min(due) - now) if due else None

    async def reconcile(self, key: str, reconcile: Reconcile[T], *, limit_s: float | None = None) -> T | None:
        """Reconcile one object, unless it failed a moment ago; return what ``reconcile`` returns, None if it failed or
        waits (``failure`` tells why). Raises Unavailable when the database is away."""
        self._seen.add(key)
        if self._rests(key):
            return None
        try:
            async with asyncio.timeout(self._limit_s if limit_s is None else limit_s):
                result = await reconcile(key)
        except Exception as error:  # the contract: any error concerns this object alone
            self._has_failed(key, error)
            return None
        self._has_succeeded(key)
        return result

    async def each(
        self, keys: Iterable[str], reconcile: Reconcile[object], *, at_once: int = 1, limit_s: float | None = None
    ) -> None:
        """Reconcile objects in their order, ``at_once`` of them side by side, each within ``limit_s`` seconds.

        Raises Unavailable.
        """
        queue, ended = iter(dict.fromkeys(keys)), list[Unavailable]()

        async def work() -> None:
            for key in queue:
                if ended:
                    return
                try:
                    await self.reconcile(key, reconcile, limit_s=limit_s)
                except Unavailable as error:
                    ended.append(error)

        if at_once == 1:
            await work()
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(work())
        if ended:
            raise ended[0]

    def start(
        self, keys: Iterable[str], reconcile: Reconcile[object], *, count_max: int, limit_s: float | None = None
    ) -> None:
        """Reconcile objects in tasks of their own, ``count_max`` at most, each within ``limit_s`` seconds. No pass
        waits for them, so an object that takes long holds up no other one. ``end`` ends them."""
        for key in dict.fromkeys(keys):
            self._seen.add(key)
            if key in self._running or self._rests(key) or len(self._running) >= count_max:
                continue
            task = asyncio.create_task(self._alone(key, reconcile, limit_s), name=f"{self._controller} {key}")
            self._running[key] = task
            task.add_done_callback(partial(self._ended, key))

    async def _alone(self, key: str, reconcile: Reconcile[object], limit_s: float | None) -> None:
        with contextlib.suppress(Unavailable):  # the next pass meets it, too, and ends with it
            await self.reconcile(key, reconcile, limit_s=limit_s)

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        del self._running[key]

    async def finish(self) -> None:
        """Wait for what was started."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def end(self) -> None:
        """Cancel what was started, and wait until it has ended."""
        for task in self._running.values():
            task.cancel()
        await self.finish()

    async def together(
        self, keys: Iterable[str], reconcile_all: Callable[[Sequence[str]], Awaitable[object]],
        reconcile: Reconcile[object],
    ) -> None:  # fmt: skip
        """Reconcile objects in one go, which is faster, and each on its own if that fails. Raises Unavailable."""
        keys = list(dict.fromkeys(keys))
        self._seen.update(keys)
        due = [key for key in keys if not self._rests(key)]
        if not due:
            return
        try:
            async with asyncio.timeout(self._limit_s):
                await reconcile_all(due)
        except Exception as error:  # one of them is the cause, and is found below
            log.info("objects are reconciled one by one", controller=self._controller, count=len(due), error=str(error))
            await self.each(due, reconcile)
        else:
            for key in due:
                self._has_succeeded(key)

    def end_pass(self) -> None:
        """Log in one line what failed in this pass, and forget failures of objects that are gone."""
        failed, self._failed = self._failed, []
        if not self._running:  # what runs may have objects that no pass sees
            for key in self._failures.keys() - self._seen:
                del self._failures[key]
        self._seen.clear()
        self._unavailable.clear()
        gauge("novacron_controller_failing_objects").set(len(self._failures), self._controller)
        if not failed:
            return
        defect = next(((key, error) for key, error in failed if _result(error) == "defect"), None)
        key, first = defect or failed[0]
        log.warning(
            "objects failed", controller=self._controller, count=len(failed),
            objects=[key for key, _ in failed[:NAMED_MAX]], first=key, error=f"{type(first).__name__}: {first}",
            failing=len(self._failures), exc_info=first if defect else None,
        )  # fmt: skip

    def _rests(self, key: str) -> bool:
        failure = self._failures.get(key)
        return failure is not None and failure.retry_at > self._clock()

    def _has_succeeded(self, key: str) -> None:
        self._failures.pop(key, None)
        self._unavailable.clear()
        self._results.add(self._controller, "done")

    def _has_failed(self, key: str, error: Exception) -> None:
        self._results.add(self._controller, _result(error))
        self._failed.append((key, error))
        before = self._failures.get(key)
        if before is not None or len(self._failures) < FAILING_MAX:
            tries = 1 if before is None else before.tries + 1
            delay_s = min(BACKOFF_S_MIN * 2.0 ** min(tries - 1, 16), BACKOFF_S_MAX)
            self._failures[key] = FailingObject(_text(error), tries, self._clock() + delay_s)
        if not isinstance(error, Unavailable) or isinstance(error, Overtaken):
            self._unavailable.clear()
            return
        self._unavailable.append(key)
        if len(self._unavailable) >= UNAVAILABLE_IN_A_ROW_MAX:
            for other in self._unavailable:
                self._failures.pop(other, None)
            raise error


def _result(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "timeout"
        case NovaError():
            return "failed"
        case _:
            return "defect"


def _text(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "it took too long"
        case NovaError():
            return error.detail
        case _:
            return f"an internal error, see the server's log: {type(error).__name__}"
