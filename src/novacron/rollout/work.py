"""What each step of a rollout does. Every step can be done again: a process that was killed in it leaves it so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from novacron.rollout import probes
from novacron.rollout.balancer import NO_TRAFFIC, HAProxy, Traffic, Weights
from novacron.rollout.gates import GateLimits, GateReading, Prometheus, PrometheusAway, failing, refusal, worse
from novacron.rollout.instances import Instances
from novacron.rollout.model import (
    SHARE,
    WATCH,
    Colour,
    Rollout,
    RolloutState,
    StepFailed,
    Strategy,
    share_of,
)
from novacron.rollout.options import RolloutOptions, secret

UP_S_MAX = 30.0
"""How long HAProxy's own checks may take to see a server that is ready."""
POLL_S = 0.2
READY_AGAIN_S, READY_TRIES = 1.0, 3
"""A server that has requests is asked so often before it counts as lost."""
VERIFIED_S_MAX = 20.0
ALL = 100


class RolloutParts(NamedTuple):
    """What a rollout works with."""

    options: RolloutOptions
    instances: Instances
    balancer: HAProxy
    prometheus: Prometheus | None


class RolloutSteps:
    """The steps. ``wait(rollout, seconds)`` waits, and raises what an operator asks for; ``kept(rollout)`` writes the
    journal."""

    def __init__(
        self, parts: RolloutParts, wait: Callable[[Rollout, float], None], kept: Callable[[Rollout], None]
    ) -> None:
        self._options, self._instances, self._balancer, self._prometheus = parts
        self._wait, self._kept = wait, kept
        self._worse_in_a_row = 0
        self._limits = GateLimits(
            parts.options.errors_max / 100, parts.options.p95_ms_max / 1000, parts.options.errors_above / 100,
            parts.options.p95_times, parts.options.least_requests,
        )  # fmt: skip

    def perform(self, rollout: Rollout) -> str:
        """Do the present step and return what came of it. Raises StepFailed."""
        step = rollout.step
        if step.startswith(SHARE):
            return self._share(rollout)
        if step.startswith(WATCH):
            return self._watch(rollout)
        return {
            "install": self._install, "start": self._start, "health": self._health, "smoke": self._smoke,
            "drain": self._drain, "stop": self._stop, "restore": self._restore, "verify": self._verify,
            "remove": self._remove,
        }[step](rollout)  # fmt: skip

    def _install(self, rollout: Rollout) -> str:
        if self._instances.running(rollout.colour):
            if rollout.strategy is Strategy.BEGIN and self._instances.version(rollout.colour) == rollout.version:
                return f"{rollout.colour} runs version {rollout.version} already"
            # Left by a rollout that could not end it. It has no requests.
            self._instances.stop(rollout.colour, self._options.stop_limit)
        self._instances.install(rollout.colour, rollout.version)
        return f"{rollout.colour} has version {rollout.version}"

    def _start(self, rollout: Rollout) -> str:
        self._instances.start(rollout.colour)
        return f"{rollout.colour} is started"

    def _health(self, rollout: Rollout) -> str:
        tries = self._until_ready(rollout, rollout.colour)
        return f"{rollout.colour} is ready, at try {tries}"

    def _until_ready(self, rollout: Rollout, colour: Colour) -> int:
        """Wait until a server is ready; return how often it was asked. Raises StepFailed."""
        why = ""
        for number in range(1, self._options.health_tries + 1):
            why = probes.why_not_ready(self._options.url(colour), self._options.ca)
            if not why:
                return number
            if not self._instances.running(colour):
                raise StepFailed(f"{colour} has ended; its log ends with:\n{self._instances.last_words(colour)}")
            if number < self._options.health_tries:
                self._wait(rollout, self._options.health_every)
        raise StepFailed(
            f"{colour} is not ready after {self._options.health_tries} tries: {why}; its log ends with:\n"
            f"{self._instances.last_words(colour)}"
        )

    def _smoke(self, rollout: Rollout) -> str:
        token = secret("--token-file", self._options.token_file)
        if not self._options.smoke or token is None:
            return "left out"
        url, name = self._options.url(rollout.colour), f"rollout-smoke-{rollout.number}"
        return probes.SmokeTest(url, token, self._options.ca, name).run(rollout.version, self._options.smoke_image)

    def _share(self, rollout: Rollout) -> str:
        share = share_of(rollout, rollout.step)
        self._until_up(rollout, rollout.colour)
        backends = [self._options.backend]
        if rollout.strategy is Strategy.BEGIN:
            backends += self._options.late_backends
        self._balancer.shift(backends, _weights(rollout, share.percent))
        return f"{rollout.version} on {rollout.colour} has {share.percent} % of the requests"

    def _until_up(self, rollout: Rollout, colour: Colour) -> None:
        """Wait until HAProxy would send requests to a colour. Raises StepFailed."""
        deadline = time.monotonic() + UP_S_MAX
        while not self._traffic(colour).up:
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"HAProxy does not see that {colour} is ready: compare blue-url, green-url and its file"
                )
            self._wait(rollout, POLL_S)

    def _traffic(self, colour: Colour) -> Traffic:
        return self._balancer.traffic(self._options.backend).get(colour, NO_TRAFFIC)

    def _watch(self, rollout: Rollout) -> str:
        share, before, said = share_of(rollout, rollout.step), self._traffic(rollout.colour), ""
        while rollout.watched_s < share.watch_s:
            began = time.monotonic()
            paused = rollout.state is RolloutState.PAUSED
            self._wait(rollout, min(self._options.check_every, max(POLL_S, share.watch_s - rollout.watched_s)))
            if not paused:
                rollout.watched_s += time.monotonic() - began
            settled = rollout.watched_s >= min(self._options.settle, share.watch_s)
            said = self._check(rollout, share.percent, before, settled=settled)
            self._kept(rollout)
        return f"watched for {rollout.watched_s:.0f} s: {said}"

    def _check(self, rollout: Rollout, percent: int, before: Traffic, *, settled: bool) -> str:
        """Look at a new version that has requests; return what was seen. Raises StepFailed."""
        self._still_ready(rollout.colour)
        if self._balancer.hold([self._options.backend], _weights(rollout, percent)):
            rollout.note(time.time(), "HAProxy had other weights: they were set again")
        now = self._traffic(rollout.colour)
        why = failing(before, now, self._limits)
        if why:
            raise StepFailed(f"{rollout.version}: {why}")
        if self._prometheus is None:
            return "HAProxy counts no more failures than may be"
        try:
            new = self._prometheus.measured(rollout.colour)
            old = self._prometheus.measured(rollout.stable) if percent < ALL else None
        except PrometheusAway as error:
            raise StepFailed(f"{rollout.version} can't be judged: {error}") from None
        why = refusal(new, rollout.version, self._limits, settled=settled) or self._worse(new, old)
        if why:
            raise StepFailed(f"{rollout.version}: {why}")
        return _seen(new)

    def _worse(self, new: GateReading, old: GateReading | None) -> str:
        """Return in what a new version is worse at several checks in a row: one may be chance, or a cold start."""
        why = "" if old is None else worse(new, old, self._limits)
        self._worse_in_a_row = self._worse_in_a_row + 1 if why else 0
        return why if self._worse_in_a_row >= self._options.worse_checks else ""

    def _still_ready(self, colour: Colour) -> None:
        why = ""
        for _ in range(READY_TRIES):
            why = probes.why_not_ready(self._options.url(colour), self._options.ca)
            if not why:
                return
            time.sleep(READY_AGAIN_S)
        raise StepFailed(f"{colour} is not ready any more: {why}")

    def _drain(self, rollout: Rollout) -> str:
        late = self._options.late_backends
        if late:
            self._balancer.shift(late, _weights(rollout, ALL))
        return self._until_drained(rollout, rollout.stable)

    def _until_drained(self, rollout: Rollout, colour: Colour) -> str:
        """Wait until a colour has no requests in progress, for a while; return what was seen. Raises StepFailed."""
        deadline = time.monotonic() + self._options.drain
        while (left := self._traffic(colour).sessions) and time.monotonic() < deadline:
            self._wait(rollout, POLL_S)
        return f"{colour} has {left} connections left" if left else f"{colour} has no requests any more"

    def _stop(self, rollout: Rollout) -> str:
        try:
            self._instances.stop(rollout.stable, self._options.stop_limit)
        except StepFailed as error:
            return f"the new version serves, but the old one did not end: {error}"
        return f"{rollout.stable} has ended"

    def _restore(self, rollout: Rollout) -> str:
        """Bring all requests back to the old version."""
        if rollout.strategy is Strategy.BEGIN:
            return "there is no version before"
        if probes.why_not_ready(self._options.url(rollout.stable), self._options.ca):
            self._instances.start(rollout.stable)
            self._until_ready(rollout, rollout.stable)
            self._until_up(rollout, rollout.stable)
        self._balancer.shift([self._options.backend, *self._options.late_backends], _weights(rollout, 0))
        rollout.went_back_s = max(0.0, time.time() - rollout.step_began_s)
        return f"{rollout.version_before} on {rollout.stable} has all requests, after {rollout.went_back_s:.1f} s"

    def _verify(self, rollout: Rollout) -> str:
        if rollout.strategy is Strategy.BEGIN:
            return "there is no version before"
        self._still_ready(rollout.stable)
        if self._prometheus is None:
            return f"{rollout.stable} is ready; there is no Prometheus to ask"
        deadline = time.monotonic() + VERIFIED_S_MAX
        while True:
            try:
                reading = self._prometheus.measured(rollout.stable)
            except PrometheusAway as error:
                return f"{rollout.stable} is ready; {error}"
            fine = reading.up == 1 and (reading.errors or 0) <= self._limits.errors_max
            if fine or time.monotonic() > deadline:
                return f"{rollout.stable} is ready; Prometheus: {_seen(reading)}"
            self._wait(rollout, POLL_S)

    def withdraw(self, rollout: Rollout) -> str:
        """Bring all requests back to the old version, though nothing can be written; return what came of it."""
        if rollout.strategy is Strategy.BEGIN or rollout.stable not in self.ready(rollout):
            return f"{rollout.colour} keeps its requests: {rollout.stable} is not ready"
        backends = [self._options.backend, *self._options.late_backends]
        try:
            self._balancer.shift_running(backends, _weights(rollout, 0))  # at first without a file: disks get full
            self._balancer.shift(backends, _weights(rollout, 0))
        except StepFailed as error:
            return f"requests should all go to {rollout.stable} again, but: {error}"
        return f"{rollout.version_before} on {rollout.stable} has all requests again"

    def ready(self, rollout: Rollout) -> list[Colour]:
        """Return which servers are ready, the new version first."""
        colours = [rollout.colour, *([rollout.stable] if rollout.version_before else [])]
        return [each for each in colours if not probes.why_not_ready(self._options.url(each), self._options.ca)]

    def accept(self, rollout: Rollout) -> Colour:
        """Give all requests to the server that serves now; return which that is. Raises StepFailed if none is ready."""
        ready = self.ready(rollout)
        if not ready:
            raise StepFailed(
                f"no server is ready, so there is nothing to accept: look at the logs of {rollout.colour}"
                f" ({rollout.version}) and {rollout.stable} ({rollout.version_before or 'none'}), start one that can"
                " run over the present schema, and try again"
            )
        kept = max(ready, key=lambda colour: self._balancer.weight(self._options.backend, colour))
        self._until_up(rollout, kept)
        self._balancer.shift([self._options.backend, *self._options.late_backends], {kept: ALL, kept.other: 0})
        return kept

    def end(self, rollout: Rollout, colour: Colour) -> str:
        """End a server that has no new requests; return what came of it."""
        try:
            said = self._until_drained(rollout, colour)
            self._instances.stop(colour, self._options.stop_limit)
        except StepFailed as error:
            return f"{colour} has no requests, but did not end: {error}"
        return f"{said}, and has ended"

    def _remove(self, rollout: Rollout) -> str:
        said = self._until_drained(rollout, rollout.colour)
        self._instances.stop(rollout.colour, self._options.stop_limit)
        return f"{said}, and has ended"


def _weights(rollout: Rollout, percent: int) -> Weights:
    return {rollout.colour: percent, rollout.stable: ALL - percent}


def _seen(measured: GateReading) -> str:
    errors = "no requests" if measured.errors is None else f"{measured.errors:.2%} of the requests fail"
    p95 = "" if measured.p95_s is None else f", p95 {1e3 * measured.p95_s:.0f} ms"
    return errors + p95
