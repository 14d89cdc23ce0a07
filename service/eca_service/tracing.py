"""OpenTelemetry traces: a span for each request, and in it decode, queue and engine of each image.

    request  POST /v1/classify ------------------------------------------
               queue ---  decode -----  queue ----  engine -----------

The first queue is the wait for a decoder thread, the second the wait for a batch. Their times are those of the response
and of `Server-Timing`. Imported only when --otlp_endpoint is set.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eca_service.inference.types import ImageResult

_FLUSH_S = 2.0
_TRACE_HEADERS = frozenset([b"traceparent", b"tracestate"])


class Tracing:
    """Makes spans.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("eca_service")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def trace_request(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[trace.Span]:
        """Make the span of a request, whose parent is the client's W3C traceparent, current until the block ends."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _TRACE_HEADERS}
        parent = self._propagator.extract(carrier)
        with self._tracer.start_as_current_span("request", parent, kind=trace.SpanKind.SERVER) as span:
            yield span

    @staticmethod
    def describe(span: trace.Span, method: str, route: str, status: int | None, request_id: str) -> str:
        """Say in a span what is known at the end of its request, and return its trace id.

        Args:
            span: The request's.
            method: Its method.
            route: Template of its route.
            status: Status of its response; None when the client disconnected before.
            request_id: Its id.
        """
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "eca.request_id": request_id})
        if status is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)
        return f"{span.get_span_context().trace_id:032x}"

    def record_images(self, model_id: str, results: Iterable[ImageResult[Any]]) -> None:
        """Add the spans of images to the current request, in whose task this is called."""
        request: Any = trace.get_current_span()
        if not request.is_recording():
            return
        for result in results:
            end_ns = request.start_time + _ns(result.total_ms)
            waits = (
                result.decoder_wait_ms,
                result.decode_ms,
                result.queue_ms - result.decoder_wait_ms,
                result.engine_ms,
            )
            start_ns = end_ns - sum(map(_ns, waits))
            attributes: dict[str, Any] = {"eca.model": model_id, "eca.batch_size": result.batch_size}
            for name, took_ms in zip(("queue", "decode", "queue", "engine"), waits, strict=True):
                span = self._tracer.start_span(name, start_time=start_ns, attributes=attributes)
                start_ns += _ns(took_ms)
                span.end(start_ns)

    def close(self) -> None:
        """Send what is left; a collector that does not respond is not waited for."""
        thread = threading.Thread(target=self._provider.shutdown, name="trace export", daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def open_tracing(endpoint: str) -> Tracing:
    """Send traces to a collector.

    Args:
        endpoint: Its address, such as http://collector:4318.
    """
    # Closed with the app: at the exit of the interpreter it would delay the end by a collector that does not respond.
    provider = TracerProvider(resource=service_resource(), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def service_resource() -> Resource:
    """Return what the variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say; by default the name is eca-hub."""
    named = Resource.create()
    if str(named.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return named.merge(Resource({SERVICE_NAME: "eca-hub"}))
    return named


def _ns(ms: float) -> int:
    return int(ms * 1e6)
