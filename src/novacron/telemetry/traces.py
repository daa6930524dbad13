"""Traces: what belongs to one request, wherever it was done (OpenTelemetry; W3C Trace Context).

``span`` is all that others use. Whatever is done in it, and what is said to other processes in it (``carry``), is part
of the same trace. Spans leave by OTLP where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says; without that nothing is recorded,
and there are ids for logs alone.

Which are recorded: everything that was asked to change something, and what follows from it; of the rest the share
``OTEL_TRACES_SAMPLER_ARG`` (0.1 unless it is set), at most a hundred answers from memory a second; of queries to the
database half of those in a recorded trace; and whatever has failed, even where nothing else of its trace is recorded.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import Span as Span
from opentelemetry.trace import SpanKind as SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from novacron import __version__
from novacron.telemetry import logs
from novacron.telemetry.values import counter

log = logs.get(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SHARE_DEFAULT, QUERIES_SHARE = 0.1, 0.5
ALWAYS, QUERY = "novacron.always", "db "
"""An attribute of what is recorded in any case; how names of queries begin."""
DRAWN_PER_S_MAX = 100.0
"""Answers from memory that are recorded in a second at most: a span costs more than such an answer."""
WAITING_MAX, BATCH_MAX, SEND_S = 4096, 512, 1.0
"""Spans that wait to be sent; more are dropped, and counted."""
EXPORT_S_MAX, CLOSE_S_MAX = 5, 2.0
TEXT_MAX = 500

_propagator = TraceContextTextMapPropagator()


class _State:
    """Of this process."""

    tracer: trace.Tracer = trace.NoOpTracer()
    provider: TracerProvider | None = None
    share = 0.0
    draws, drawn_at = 0.0, 0.0


def set_up(component: str, instance: str, environment: Mapping[str, str] = os.environ) -> None:
    """Begin to record spans of this process, if there is where to send them. ``instance`` tells it from its like."""
    endpoint = next((url for name in ENDPOINTS if (url := environment.get(name))), None)
    share = max(1e-9, _share(environment.get("OTEL_TRACES_SAMPLER_ARG"))) if endpoint else 0.0
    resource = Resource.create(
        {"service.name": f"novacron-{component}", "service.instance.id": instance, "service.version": __version__}
    )
    provider = TracerProvider(
        sampler=_Share(share) if endpoint else _Nothing(), resource=resource, shutdown_on_exit=False
    )
    if endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # takes 0.15 s to import

        provider.add_span_processor(Bounded(OTLPSpanExporter(timeout=EXPORT_S_MAX)))
    _State.provider, _State.share = provider, share
    _State.tracer = provider.get_tracer("novacron", __version__)


def close() -> None:
    """Send what waits, if that does not take long."""
    if _State.provider is not None:
        _State.provider.shutdown()


def _share(text: str | None) -> float:
    try:
        return min(1.0, max(0.0, float(text))) if text else SHARE_DEFAULT
    except ValueError:
        log.warning("OTEL_TRACES_SAMPLER_ARG is not a number between 0 and 1", found=text)
        return SHARE_DEFAULT


@contextlib.contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    always: bool = False,
    kind: SpanKind = SpanKind.INTERNAL,
    **attributes: AttributeValue | None,
) -> Iterator[Span]:
    """Make what is done in the block a span: part of the present one, or of the ``parent`` that another process has
    carried here (``""``: of none). ``always``: it is recorded in any case. An exception ends it as failed."""
    context = None if parent is None else carried(parent)
    known_attributes = _without_none(attributes)
    began_ns, began = time.time_ns(), time.perf_counter()
    span_ = _State.tracer.start_span(
        name, context, kind, {**known_attributes, ALWAYS: True} if always else known_attributes, start_time=began_ns
    )  # fmt: skip
    try:
        with trace.use_span(span_, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield span_
    except Exception as error:
        if not span_.is_recording() and _State.share:
            span_ = _recorded_after_all(name, span_, kind, known_attributes, began_ns)
        span_.set_status(Status(StatusCode.ERROR, str(error)[:TEXT_MAX]))
        span_.set_attribute("error.type", type(error).__name__)
        raise
    finally:
        span_.end(began_ns + int((time.perf_counter() - began) * 1e9))  # even if the clock was set meanwhile


def _recorded_after_all(name: str, of: Span, kind: SpanKind, attributes: dict[str, Any], began_ns: int) -> Span:
    was = of.get_span_context()
    context = trace.set_span_in_context(NonRecordingSpan(was)) if was.is_valid else Context()
    return _State.tracer.start_span(name, context, kind, {**attributes, ALWAYS: True}, start_time=began_ns)


def happened(
    name: str,
    took_s: float,
    *,
    parent: str = "",
    kind: SpanKind = SpanKind.INTERNAL,
    error: str = "",
    **attributes: AttributeValue | None,
) -> None:
    """Record what has just ended, and was not watched from its beginning: in the trace of ``parent``, if that is
    recorded or this has failed, or in one of its own."""
    now_ns = time.time_ns()
    known_attributes = (
        _without_none(attributes) if parent and not error else {**_without_none(attributes), ALWAYS: True}
    )
    span_ = _State.tracer.start_span(
        name, carried(parent), kind, known_attributes, start_time=now_ns - int(took_s * 1e9)
    )
    if error:
        span_.set_status(Status(StatusCode.ERROR, error[:TEXT_MAX]))
    span_.end(now_ns)


def exporting() -> bool:
    """Say whether anything may be recorded."""
    return _State.share > 0


def drawn() -> bool:
    """Say whether something cheap that happens very often, and would be a trace of its own, is to be recorded."""
    if not _State.share or random.random() >= _State.share:  # noqa: S311 (a sample)
        return False
    now = time.monotonic()
    _State.draws = min(DRAWN_PER_S_MAX, _State.draws + (now - _State.drawn_at) * DRAWN_PER_S_MAX)
    _State.drawn_at = now
    if _State.draws < 1:
        return False
    _State.draws -= 1
    return True


def carried(parent: str) -> Context:
    """Return the context that another process has carried here (traceparent)."""
    return _propagator.extract({"traceparent": parent}, Context()) if parent else Context()


def carry() -> str:
    """Return the present span as other processes receive it (traceparent), or nothing."""
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers.get("traceparent", "")


def recording() -> bool:
    """Say whether the present span is recorded."""
    return trace.get_current_span().is_recording()


def failed(why: str) -> None:
    """Mark the present span as failed."""
    trace.get_current_span().set_status(Status(StatusCode.ERROR, why[:TEXT_MAX]))


def note(name: str, **attributes: AttributeValue | None) -> None:
    """Say that something happened within the present span."""
    trace.get_current_span().add_event(name, _without_none(attributes))


def recorded_id() -> str:
    """Return the id of the present trace if it is recorded, else nothing."""
    span_ = trace.get_current_span()
    return f"{span_.get_span_context().trace_id:032x}" if span_.is_recording() else ""


def _without_none(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with names as they are written; those without a value are left out."""
    return {name.replace("__", "."): value for name, value in attributes.items() if value not in (None, "")}


class _Nothing(Sampler):
    """Records nothing; there are ids all the same."""

    def should_sample(self, parent_context: Context | None, *_: object, **__: object) -> SamplingResult:
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "nothing"


class _Share(Sampler):
    def __init__(self, share: float) -> None:
        self._share = share

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if attributes and attributes.get(ALWAYS):
            taken = True
        elif parent.is_valid:
            taken = bool(parent.trace_flags & TraceFlags.SAMPLED)
            if name.startswith(QUERY):
                taken = taken and random.random() < QUERIES_SHARE  # noqa: S311 (a sample)
        else:
            taken = (trace_id & (1 << 64) - 1) < self._share * (1 << 64)
        kept = {key: value for key, value in (attributes or {}).items() if key != ALWAYS}
        return SamplingResult(Decision.RECORD_AND_SAMPLE if taken else Decision.DROP, kept)

    def get_description(self) -> str:
        return f"a share of {self._share}, and what is asked for"


class _Counting(SpanExporter):
    """Counts what was sent. Runs in the exporter's thread, which alone counts here."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.done = 0
        self._sent, self._failed = (counter("novacron_traces_spans_total").cell(o) for o in ("sent", "failed"))
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # a defect in tracing must not reach the caller
            result = SpanExportResult.FAILURE
        self.done += len(spans)
        ok = result is SpanExportResult.SUCCESS
        (self._sent if ok else self._failed)[0] += len(spans)
        if ok is self._away:
            self._away = not ok
            log.info("traces are sent again") if ok else log.warning("traces can't be sent: they are dropped")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Bounded(SpanProcessor):
    """Sends spans from a thread of its own; a collector that is slow or away costs spans, and nothing else."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._counting = _Counting(exporter)
        self._taken = 0
        self._dropped = counter("novacron_traces_spans_total").cell("dropped")
        self._batches = BatchSpanProcessor(self._counting, WAITING_MAX, SEND_S * 1000, BATCH_MAX)

    def on_end(self, span: ReadableSpan) -> None:
        if self._taken - self._counting.done >= WAITING_MAX:
            self._dropped[0] += 1
            return
        self._taken += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches._batch_processor.shutdown(int(CLOSE_S_MAX * 1000))

    def force_flush(self, timeout_millis: int = 2000) -> bool:
        return self._batches.force_flush(timeout_millis)
