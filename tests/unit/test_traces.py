"""Which spans are recorded, and what they are part of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lab.platform import until
from novacron.telemetry import traces, values
from novacron.telemetry.traces import Bounded, _Nothing, _Share, _State
from tests.support.recorded_spans import record_spans


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(values, "_all", {})
    was = _State.tracer, _State.provider, _State.share
    yield
    _State.tracer, _State.provider, _State.share = was


def names(exporter: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]


def test_a_share_of_traces_is_recorded_with_all_of_their_spans() -> None:
    exporter = record_spans(0.25)
    for _ in range(2000):
        with traces.span("request", parent=""), traces.span("part"):
            pass
    assert 350 < names(exporter).count("request") < 650
    assert names(exporter).count("part") == names(exporter).count("request")


def test_changes_are_always_recorded_with_half_of_their_queries() -> None:
    exporter = record_spans(0.0)
    with traces.span("change", always=True):
        for _ in range(1000):
            with traces.span("db select"):
                pass
    assert "change" in names(exporter)
    assert 400 < names(exporter).count("db select") < 600


def test_failures_are_recorded_even_when_nothing_else_is() -> None:
    exporter = record_spans(0.0)
    with pytest.raises(ValueError, match="no"), traces.span("read", parent="", what="it"):
        with traces.span("first part"):
            pass
        raise ValueError("no")
    (span,) = exporter.get_finished_spans()
    assert span.name == "read" and not span.status.is_ok
    assert span.attributes is not None and span.attributes["what"] == "it"
    assert span.attributes["error.type"] == "ValueError"
    assert span.start_time is not None and span.end_time is not None and span.start_time <= span.end_time


def test_a_remote_process_continues_the_trace_of_its_caller() -> None:
    exporter = record_spans(0.0)
    with traces.span("here", always=True):
        carried = traces.carry()
    with traces.span("there", parent=carried):
        pass
    here, there = exporter.get_finished_spans()
    assert here.context is not None and there.context is not None and there.parent is not None
    assert there.context.trace_id == here.context.trace_id and there.parent.span_id == here.context.span_id


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\xff" * 9])
def test_an_invalid_trace_header_begins_a_new_trace(parent: str) -> None:
    exporter = record_spans(1.0)
    with traces.span("request", parent=parent):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_without_a_collector_there_are_ids_and_nothing_is_recorded() -> None:
    _State.tracer = TracerProvider(sampler=_Nothing()).get_tracer("test")
    _State.share = 0.0
    with traces.span("work", always=True):
        assert trace.get_current_span().get_span_context().is_valid
        assert not traces.recording() and traces.recorded_id() == ""
        assert not int(traces.carry()[-2:], 16) & 1
    assert not traces.drawn()


class Stuck(SpanExporter):
    """A collector that takes nothing until it is let."""

    def __init__(self) -> None:
        import threading

        self.go = threading.Event()
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.go.wait(30)
        self.taken += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        return


def test_a_stuck_collector_costs_spans_which_are_counted() -> None:
    stuck = Stuck()
    bounded = Bounded(stuck)
    provider = TracerProvider(sampler=_Share(1.0), shutdown_on_exit=False)
    provider.add_span_processor(bounded)
    _State.tracer = provider.get_tracer("test")
    count = traces.WAITING_MAX + 1000
    for _ in range(count):
        with traces.span("work", parent=""):
            pass
    cells = values.counter("novacron_traces_spans_total").cells
    assert cells[("dropped",)][0] == 1000
    stuck.go.set()
    until(lambda: cells[("sent",)][0] == traces.WAITING_MAX, "the others are sent", 20)
    assert stuck.taken == traces.WAITING_MAX
    provider.shutdown()


def test_no_span_ends_before_it_begins_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, real = record_spans(1.0), time.time_ns
    with traces.span("work", parent=""):
        monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
    (span,) = exporter.get_finished_spans()
    assert span.start_time is not None and span.end_time is not None
    assert 0 <= span.end_time - span.start_time < 10**9
