"""How dense a session compresses: the link must not wait for the processor, nor a busy host for the link's sake."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from novacron.dwcp.compression import DENSER_AFTER_S_MAX, FIRST, LIGHT, METHODS, MethodChooser, StageClocks
from novacron.dwcp.stage_times import StageTimes, idle_processor_s


class Time(NamedTuple):
    """What happens in some seconds: shares of them, bytes a second, and processors that idle."""

    seconds: float
    looking_up: float = 0.1
    compressing: float = 0.1
    compressing_cpu: float = 0.1
    blocked: float = 0.0
    starved: float = 0.0
    bytes_per_s: float = 12e6
    idle: float = 0.0


LINK_FULL = Time(1.1, compressing=0.2, compressing_cpu=0.2, blocked=0.8, idle=1.5)
LINK_FULL_HOST_BUSY = LINK_FULL._replace(idle=0.3)
LINK_WAITS = Time(0.3, compressing=0.9, compressing_cpu=0.8, starved=0.5, bytes_per_s=6e6)
FAST_LINK_WAITS = Time(0.3, looking_up=0.5, compressing=0.9, compressing_cpu=0.9, bytes_per_s=100e6)
FAST_LINK_FULL = Time(0.3, looking_up=0.0, compressing=0.0, compressing_cpu=0.0, blocked=0.9, bytes_per_s=100e6)


def methods(times: Iterable[Time], method: int = FIRST) -> list[int]:
    """Return the method after each time."""
    now, idle_s, seen = StageClocks(0.0), 0.0, []
    chooser = MethodChooser(now, lambda: idle_s)
    for time in times:
        s = time.seconds
        shares = (time.looking_up, time.compressing, time.compressing_cpu, time.blocked, time.starved, time.bytes_per_s)
        now = StageClocks(
            now.at + s,
            *(before + share * s for before, share in zip(now[1:], shares, strict=True)),  # type: ignore[arg-type]
        )
        idle_s += time.idle * s
        method = chooser.choose(now, method)
        seen.append(method)
    return seen


def test_a_full_link_and_an_idle_host_compress_densely() -> None:
    assert methods([LINK_FULL] * 2) == [FIRST + 1, len(METHODS) - 1]


def test_a_busy_host_does_not_compress_more_densely() -> None:
    assert methods([LINK_FULL_HOST_BUSY] * 5) == [FIRST] * 5


def test_a_denser_method_that_takes_most_of_a_processor_is_not_begun() -> None:
    assert methods([LINK_FULL._replace(compressing=0.4, compressing_cpu=0.4)] * 3) == [FIRST] * 3


def test_a_slow_link_that_waits_for_compression_gets_a_lighter_one_but_finds_distant_repetitions() -> None:
    assert methods([LINK_WAITS] * 5, 4) == [3, 2, 2, 2, 2]


def test_a_host_that_others_use_compresses_lightly_when_the_link_waits_for_look_ups() -> None:
    others_work = Time(0.3, looking_up=0.9, compressing=0.4, compressing_cpu=0.2, starved=0.6)
    assert methods([others_work] * 3) == [2, 2, 2]


@pytest.mark.parametrize(
    "time",
    [
        Time(0.3, looking_up=0.95, compressing=0.1, starved=0.9),
        Time(0.3, looking_up=0.3, compressing=1.0, compressing_cpu=1.0),
        Time(0.3, compressing=0.9, compressing_cpu=0.9, starved=0.3, blocked=0.6),
        Time(0.1, compressing=0.9, compressing_cpu=0.9, starved=0.9),
    ],
    ids=["there is nothing to send", "the queue is filled for the first time", "the link is full", "too soon to say"],
)
def test_a_lighter_method_that_would_not_help_is_not_begun(time: Time) -> None:
    assert methods([time] * 2) == [FIRST] * 2


def test_a_link_faster_than_the_processor_gets_pages_as_they_are() -> None:
    assert methods([FAST_LINK_WAITS] * 4) == [1, 0, 0, 0]


def test_pages_are_looked_up_again_when_a_fast_link_is_full() -> None:
    assert methods([FAST_LINK_FULL] * 2, LIGHT)[0] == 1


def test_a_denser_method_that_did_not_work_is_tried_later_each_time() -> None:
    tried_at = []
    full = LINK_FULL._replace(seconds=0.5)
    for waits in range(1, 7):
        seen = methods([LINK_WAITS, *[full] * 40] * waits, FIRST)
        tried_at.append(next(n for n, method in enumerate(seen[-40:]) if method > seen[-41]) * full.seconds)
    assert tried_at[0] < tried_at[1] < tried_at[2] < tried_at[3]
    assert max(tried_at) <= DENSER_AFTER_S_MAX


def test_costs_of_methods_rise_with_their_density() -> None:
    assert [method.cost for method in METHODS] == sorted(method.cost for method in METHODS)


def test_processor_time_is_counted_by_stage_also_when_a_stage_fails() -> None:
    times = StageTimes()

    def fail() -> None:
        sum(range(100_000))
        raise OSError("no")

    assert times.run("split", lambda n: sum(range(n)), 100_000) == sum(range(100_000))
    with pytest.raises(OSError, match="no"):
        times.run("write", fail)
    assert set(times.seconds) == {"split", "write"} and all(seconds > 0 for seconds in times.seconds.values())
    assert set(times.as_log_fields()) == {"split_cpu_s", "write_cpu_s"}


@pytest.mark.parametrize(
    ("text", "idle_s"),
    [("cpu  1 2 3 400 500 6 7 8 9 0\ncpu0 1 2", 9.0), ("cpu  1 2", 0.0), ("", 0.0), ("intr 1 2 3 4 5 6", 0.0)],
)
def test_idle_time_is_read_from_the_kernel_or_taken_for_none(tmp_path: Path, text: str, idle_s: float) -> None:
    (tmp_path / "stat").write_text(text)
    assert idle_processor_s(tmp_path / "stat") == idle_s
    assert idle_processor_s(tmp_path / "missing") == 0.0
    assert idle_processor_s() > 0
