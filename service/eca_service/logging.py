"""Logging of the service: text on a terminal, one JSON object a line elsewhere, and an access log.

Records are written by a thread, so that a reader of the log that stops reading cannot stop the event loop: beyond
`_MAX_PENDING` records, new ones are dropped.
"""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from typing import Literal

_MAX_PENDING = 10_000
_FLUSH_S = 1.0
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_access_logger = logging.getLogger("eca_service.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the fields of an access record are on the same level as the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _DroppingHandler(QueueHandler):
    """Queue records without changing them, and drop them when the queue is full."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Keep the record as it is: it stays in this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record if there is room."""
        with suppress(queue.Full):
            self.queue.put_nowait(record)


class _FileDescriptorHandler(logging.Handler):
    """Write without a buffer of Python's, whose lock would be held by a write that blocks at exit."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def createLock(self) -> None:  # noqa: N802
        """Have no lock: one thread uses the handler, and `logging.shutdown` would wait for a write that blocks."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; without a reader it is dropped."""
        line = (self.format(record) + "\n").encode(errors="backslashreplace")
        with suppress(OSError):
            while line:
                line = line[os.write(self._descriptor, line) :]


def _handler_of_stderr() -> logging.Handler:
    try:
        return _FileDescriptorHandler(sys.stderr.fileno())
    except OSError:
        # A notebook's or a test's standard error is no file.
        return logging.StreamHandler(sys.stderr)


@contextmanager
def log_to_stderr(
    log_format: Literal["auto", "text", "json"], access_log: Literal["auto", "on", "off"]
) -> Iterator[None]:
    """Log to standard error until the block ends.

    Args:
        log_format: `auto` is text on a terminal and JSON elsewhere.
        access_log: `auto` is off on a terminal and on elsewhere.
    """
    is_terminal = sys.stderr.isatty()
    is_json = log_format == "json" or (log_format == "auto" and not is_terminal)
    output = _handler_of_stderr()
    output.setFormatter(JsonFormatter() if is_json else logging.Formatter(_TEXT))
    records: queue.Queue[logging.LogRecord | None] = queue.Queue(_MAX_PENDING)

    def write() -> None:
        while (record := records.get()) is not None:
            output.handle(record)

    thread = threading.Thread(target=write, name="log", daemon=True)
    thread.start()
    handler, root = _DroppingHandler(records), logging.getLogger()
    root.addHandler(handler)
    is_logged = access_log == "on" or (access_log == "auto" and not is_terminal)
    levels = {root: logging.INFO, _access_logger: logging.INFO if is_logged else logging.CRITICAL}
    levels |= {logging.getLogger(verbose): logging.WARNING for verbose in ("uvicorn", "httpx2")}
    previous = {logger: logger.level for logger in levels}
    for logger, level in levels.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, level in previous.items():
            logger.setLevel(level)
        with suppress(queue.Full):
            records.put(None, timeout=_FLUSH_S)
        thread.join(_FLUSH_S)


def log_access(
    request_id: str, method: str, route: str, status: int | None, duration_s: float, trace_id: str = ""
) -> None:
    """Log one request. The route is its template, never the path that was sent.

    Args:
        request_id: Its id.
        method: Its method.
        route: Template of the route, such as /models/{model_id}.
        status: Status of its response; None when the client disconnected before.
        duration_s: How long it took.
        trace_id: Trace of the client, from its W3C traceparent header; empty without one.
    """
    if _access_logger.isEnabledFor(logging.INFO):
        ms = round(duration_s * 1000, 1)
        fields: dict[str, object] = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "ms": ms,
        }
        fields |= {"trace_id": trace_id} if trace_id else {}
        _access_logger.info(
            "%s %s %s %s %.1f ms", request_id, method, route, status or "disconnected", ms, extra={"fields": fields}
        )
