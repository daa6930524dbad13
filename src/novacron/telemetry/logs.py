"""How logs are written: one JSON object a line on stdout, or for people when that is a terminal.

Lines are written by a thread of their own, whole, and at most ``LINE_BYTES_MAX`` long, which the kernel writes to a
pipe at once: processes that share one do not mix their lines. A sink that is slow or gone costs lines, which are
counted, and nothing else. The level can be changed while a process runs (``set_level``; the file that ``follow``
watches). Secrets are not written, wherever they turn up.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from structlog.typing import FilteringBoundLogger

from novacron.telemetry.values import counter

LINE_BYTES_MAX = 4096
"""PIPE_BUF: what is written to a pipe at once is not mixed with what others write."""
TEXT_MAX = 1500
"""Of one value in a line that would be longer."""
WAITING_MAX = 10_000
"""Lines that wait to be written; more are dropped."""
CLOSE_S_MAX = 2.0
LOOK_S = 0.5
LEVELS = ("debug", "info", "warning", "error")
HIDDEN = "[hidden]"
SECRET_NAMES = re.compile(r"passw|secret|token$|authorization|cookie|private|ticket|csr$|api_?key|page_key")
SECRETS = re.compile(
    r"\bnv[aj]_[A-Za-z0-9_.=-]+"
    r"|(?i:bearer|basic)\s+[A-Za-z0-9+/_.=-]{8,}"
    r"|(?<=://)[^\s:/@\"]*:[^\s/@\"]+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
"""Tokens, credentials of headers and of URLs, private keys."""

Event = MutableMapping[str, Any]

bound = structlog.contextvars.bound_contextvars
"""In its block, all that is logged tells these fields, too."""


class _Level:
    """What of this process is logged."""

    number = logging.INFO


def set_level(name: str) -> None:
    """Log this level and above from now on. Raises ValueError."""
    if name not in LEVELS:
        raise ValueError(f"{name!r} is no level: choose of {', '.join(LEVELS)}")
    _Level.number = logging.getLevelNamesMapping()[name.upper()]
    logging.getLogger().setLevel(max(_Level.number, logging.WARNING))


def debugging() -> bool:
    """Say whether everything is logged: what happens thousands of times a second asks before it says anything."""
    return _Level.number <= logging.DEBUG


def level() -> str:
    """Return the present level."""
    return logging.getLevelName(_Level.number).lower()


async def follow(file: Path, default: str) -> None:
    """Use the level that ``file`` names, or ``default`` while it is not there, until cancelled."""
    while True:
        new = default
        with contextlib.suppress(OSError):
            new = file.read_text().strip() or default
        if new != level():
            try:
                was = level()
                set_level(new)
                get(__name__).warning("the log level has changed", level=new, was=was)
            except ValueError as error:
                get(__name__).error("the log level can't be changed", file=str(file), error=str(error))
                with contextlib.suppress(OSError):
                    file.unlink()
        await asyncio.sleep(LOOK_S)


def _filter(logger: object, method: str, event: Event) -> Event:
    del logger
    if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < _Level.number:
        raise structlog.DropEvent
    return event


def _trace(logger: object, method: str, event: Event) -> Event:
    """Say in which trace it happened."""
    del logger, method
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event


def redacted(text: str) -> str:
    """Return a text without secrets in it."""
    return SECRETS.sub(HIDDEN, text)


def _hide(logger: object, method: str, event: Event) -> Event:
    del logger, method
    for name, value in event.items():
        event[name] = HIDDEN if SECRET_NAMES.search(name) and value else _hidden(value)
    return event


def _hidden(value: object) -> object:
    """Return a value without its secrets, however it is nested."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {
            str(name): HIDDEN if SECRET_NAMES.search(str(name)) and field else _hidden(field)
            for name, field in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return redacted(str(value))


class _Json:
    """Makes a line of an event, not too long."""

    def __init__(self) -> None:
        self._render = structlog.processors.JSONRenderer(default=str)

    def __call__(self, logger: object, method: str, event: Event) -> str:
        line = str(self._render(logger, method, event))
        for most in (TEXT_MAX, TEXT_MAX // 10):
            if len(line.encode()) < LINE_BYTES_MAX:
                return line
            event = {name: _cut(value, most) for name, value in event.items()}
            line = str(self._render(logger, method, event))
        if len(line.encode()) < LINE_BYTES_MAX:
            return line
        kept = {name: event[name] for name in ("event", "level", "timestamp", "component") if name in event}
        return str(self._render(logger, method, {**kept, "cut": True}))


def _cut(value: object, most: int) -> object:
    """Return a value with the middle left out where it is long: a traceback says most at both ends."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, dict | list) else None
    if text is None or len(text) <= most:
        return value
    return f"{text[: most // 2]} [...] {text[-most // 2 :]}"


class LogWriter:
    """Writes lines to a file descriptor, in the order in which they come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._there = threading.Event()
        lines = counter("novacron_logs_lines_total")
        self._dropped = lines.cell("dropped")
        self._written, self._lost = lines.cell("written"), lines.cell("lost")  # counted by the writing thread alone
        self._busy = False
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def put(self, line: str) -> None:
        """Take a line; it is dropped if too many wait."""
        if len(self._lines) >= WAITING_MAX:
            self._dropped[0] += 1
            return
        self._lines.append(line.encode(errors="backslashreplace") + b"\n")
        self._there.set()

    def flush(self, timeout_s: float = CLOSE_S_MAX) -> None:
        """Wait until all lines are written, but not for long."""
        deadline = time.monotonic() + timeout_s
        while (self._lines or self._busy) and time.monotonic() < deadline:
            time.sleep(0.001)

    def _run(self) -> None:
        while True:
            self._there.wait()
            self._there.clear()
            self._busy = True
            while self._lines:
                taken = [self._lines.popleft()]
                size = len(taken[0])
                while self._lines and size + len(self._lines[0]) <= LINE_BYTES_MAX:
                    taken.append(self._lines.popleft())
                    size += len(taken[-1])
                (self._written if self._write(b"".join(taken)) else self._lost)[0] += len(taken)
            self._busy = False

    def _write(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody has made it so
                time.sleep(0.01)
            except OSError:  # nobody reads any more
                return False
        return True


_writer: LogWriter | None = None


def _lines() -> LogWriter:
    global _writer
    if _writer is None:
        sys.stdout.flush()
        _writer = LogWriter(sys.stdout.fileno())
        atexit.register(_writer.flush)
    return _writer


class _Logger:
    """What structlog writes to."""

    def msg(self, line: str) -> None:
        _lines().put(line)

    debug = info = warning = error = critical = exception = log = msg


class _Handler(logging.Handler):
    """Where libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _lines().put(self.format(record))
        except Exception:
            self.handleError(record)


def set_up(component: str, level: str = "info") -> None:
    """Configure logging of this process, libraries included. An unknown level means info, with a warning."""
    human = sys.stdout.isatty()

    def named(logger: object, method: str, event: Event) -> Event:
        del logger, method
        event.setdefault("component", component)  # in threads without a context, too
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        named,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _trace,
        structlog.processors.format_exc_info,
        _hide,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if human else _Json()
    structlog.configure(
        processors=[_filter, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=lambda *_: _Logger(),
        cache_logger_on_first_use=True,
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it drops is counted, and said once
    set_level(level if level in LEVELS else "info")
    if level not in LEVELS:
        get(__name__).warning("unknown log level: using info", found=level, levels=LEVELS)


def get(name: str) -> FilteringBoundLogger:
    """Return the logger of a module."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger
