"""Metrics for Prometheus. Labels are model ids, route templates and status codes, never anything that a client sent.

Every bounded number has a metric for its limit. Each app has its own registry, so that two apps in one process (tests)
do not add up.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# One `_created` sample for each series would double the text.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)

RequestEnded = Callable[[str, int | None, float], None]
"""Called with route template, status (None: the client disconnected) and seconds."""


class Metrics:
    """The metrics of one app.

    Args:
        collector: Yields what is measured when /metrics is read.
    """

    def __init__(self, collector: Callable[[], Iterator[Metric]]) -> None:
        self._registry = registry = CollectorRegistry()
        self._received = Counter("eca_requests_received", "Requests whose headers arrived.", registry=registry)
        self._requests = Counter(
            "eca_requests",
            "Requests that ended, by route template and status; disconnected where the client hung up.",
            ["route", "code"],
            registry=registry,
        )
        self._in_flight = Gauge("eca_requests_in_flight", "Requests that are being handled.", registry=registry)
        self._duration = Histogram(
            "eca_request_duration_seconds",
            "From the headers of a request to the end of its response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "eca_requests_rejected",
            "Requests that were refused for a while, by error code (overloaded, not_ready).",
            ["code"],
            registry=registry,
        )

        def per_model(name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, about, ["model"], buckets=buckets, registry=registry)

        self.decode_seconds = per_model("eca_decode_seconds", "Decoding of one image.")
        self.queue_seconds = per_model("eca_queue_seconds", "Wait of one image, for a decoder and for a batch.")
        self.engine_seconds = per_model("eca_engine_seconds", "Batch of one image in the engine.")
        self.batch_size = per_model("eca_batch_size", "Images in the batch of one image.", _SIZES)
        registry.register(_Callback(collector))
        registry.register(_Callback(_gpu_memory))
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

    @contextmanager
    def count_request(self) -> Iterator[RequestEnded]:
        """Count a request as in flight until the block ends; call what it yields when the request has ended."""

        def ended(route: str, status: int | None, duration_s: float) -> None:
            self._requests.labels(route, "disconnected" if status is None else str(status)).inc()
            self._duration.labels(route).observe(duration_s)

        self._received.inc()
        with self._in_flight.track_inprogress():
            yield ended

    def add_bounded(self, name: str, about: str, value: Callable[[], float], limit: float) -> None:
        """Add a gauge, whose value is read when /metrics is, and one for its limit."""
        Gauge(name, about, registry=self._registry).set_function(value)
        Gauge(f"{name}_limit", f"Limit of {name}.", registry=self._registry).set(limit)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _Callback(Collector):
    def __init__(self, measure: Callable[[], Iterator[Metric]]) -> None:
        self._measure = measure

    def collect(self) -> Iterator[Metric]:
        """Measure."""
        return self._measure()

    def describe(self) -> list[Metric]:
        """Return nothing: the registry would otherwise collect once when this is registered."""
        return []


def _gpu_memory() -> Iterator[Metric]:
    """Measure the memory of each GPU that torch has used, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    used = prometheus_client.core.GaugeMetricFamily(
        "eca_gpu_memory_bytes", "Memory of a GPU: allocated by torch, free or in total.", labels=["device", "kind"]
    )
    for index in range(torch.cuda.device_count()):
        if not torch.cuda.memory_reserved(index):
            # To ask for its free memory would allocate some on it, which may belong to another program.
            continue
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError:
            # The device is lost.
            continue
        amounts = {"allocated": torch.cuda.memory_allocated(index), "free": free, "total": total}
        for kind, amount in amounts.items():
            used.add_metric([f"cuda:{index}", kind], amount)
    yield used
