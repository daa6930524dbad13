"""How long a live migration will take, and how long the guest will stand still: pure arithmetic.

Pre-copy sends all memory, then what was written meanwhile, and so on. A pass is as long as the link needs for what it
sends, or the processors for what they look at, whichever is more. What a guest writes in that time is the next pass.
The guest stops when a pass would be short enough (Clark et al., "Live Migration of Virtual Machines", NSDI 2005).
"""

from __future__ import annotations

import msgspec

PASSES_MAX = 40
PROCESSING_BYTES_PER_S = 200_000_000
"""How fast both ends look at memory that costs the link nothing."""
SWITCH_S = 0.06
"""What the switch takes beyond the last bytes' way: the devices' state, two promises, one transaction."""
SHRINKS = 0.9
"""A pass that is not shorter than this share of the one before is as short as it gets."""


class Path(msgspec.Struct, frozen=True):
    """What is known of the way: rates in bytes a second, times in seconds."""

    rate: float
    rtt_s: float
    ratio: float
    """Bytes on the link for each byte of memory that is sent."""
    backlog: float = 0.0
    """Bytes that wait for the link already."""


class Forecast(msgspec.Struct, frozen=True):
    """A verdict: whether it converges, in how many seconds from now, with how much downtime, and if not, why."""

    converges: bool
    total_s: float
    downtime_ms: float
    reason: str = ""


class ForecastError(msgspec.Struct, frozen=True):
    """By how much a migration took longer, and its guest stood still longer, than was foreseen at first."""

    total_s: float
    downtime_ms: float


def error(foreseen: Forecast, took_s: float, downtime_ms: float) -> ForecastError:
    """Compare what was foreseen with what came. ``took_s`` counts from when it was foreseen."""
    return ForecastError(round(took_s - foreseen.total_s, 2), round(downtime_ms - foreseen.downtime_ms, 1))


def pass_s(size: float, path: Path) -> float:
    """Return how many seconds it takes to send ``size`` bytes of memory."""
    return max(size * path.ratio / max(path.rate, 1.0), size / PROCESSING_BYTES_PER_S)


def downtime_s(size: float, path: Path) -> float:
    """Return how long the guest stands still if it stops now, with ``size`` bytes of memory left to send."""
    return pass_s(size, path) + path.backlog / max(path.rate, 1.0) + path.rtt_s / 2 + SWITCH_S


def forecast(
    memory_bytes: float, dirty_rate: float, path: Path, limit_s: float, passes_max: int = PASSES_MAX
) -> Forecast:
    """Foresee a migration that has ``left`` bytes of memory to send and a guest that writes ``dirty_rate`` bytes a
    second, and that lets the guest stop when it would stand still for ``limit_s`` at most, or after ``passes_max``.

    What waits for the link now has been sent when the first pass ends.
    """
    total, size = path.backlog / max(path.rate, 1.0), memory_bytes
    path = msgspec.structs.replace(path, backlog=0.0)
    for number in range(passes_max + 1):
        if number > 0 and downtime_s(size, path) <= limit_s:
            down = downtime_s(size, path)
            return Forecast(True, round(total + down, 2), round(down * 1e3, 1))
        if number == passes_max:
            break
        took = pass_s(size, path)
        total += took
        following = min(dirty_rate * took, memory_bytes)
        if number > 0 and following > size * SHRINKS:
            size = following
            break
        size = following
    down = downtime_s(size, path)
    takes = path.rate / max(path.ratio, 1e-6)
    reason = (
        f"the guest writes {dirty_rate / 1e6:.1f} MB/s, the link takes {takes / 1e6:.1f} MB/s of its memory: "
        f"it would stand still for {down * 1e3:.0f} ms, {limit_s * 1e3:.0f} ms are allowed"
    )
    return Forecast(False, round(total + down, 2), round(down * 1e3, 1), reason)
