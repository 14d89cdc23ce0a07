"""What the service counts and measures, in the text format that Prometheus reads.

Every number that is bounded stands beside its bound. Labels are model ids, addresses of routes and status codes, never
anything that a caller made up. Knows numbers; nothing of requests, pictures or models.
"""

import bisect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

Labels = tuple[str, ...]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Counter:
    """A number for each combination of labels that only grows.

    Args:
        name: With `eca_` in front and `_total` at the end.
        about: One sentence for the reader of the metrics.
        labels: Names of the labels.
    """

    kind = "counter"

    def __init__(self, name: str, about: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.about = about
        self.labels = labels
        self._counts: dict[Labels, int] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str) -> None:
        """Count one more."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + 1

    def lines(self) -> Iterator[str]:
        """The samples, one a line."""
        with self._lock:
            counts = sorted(self._counts.items())
        for labels, count in counts:
            yield f"{self.name}{_braces(self.labels, labels)} {count}"


class Histogram:
    """How often a value was how large, for each combination of labels.

    Args:
        name: With `eca_` in front and the unit at the end.
        about: One sentence for the reader of the metrics.
        labels: Names of the labels.
        bounds: Upper ends of the classes that are counted.
    """

    kind = "histogram"

    def __init__(self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float] = SECONDS) -> None:
        self.name = name
        self.about = about
        self.labels = labels
        self._bounds = bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
            counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterator[str]:
        """The samples, one a line."""
        with self._lock:
            state = sorted((labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items())
        for labels, counts, total in state:
            so_far = 0
            for bound, count in zip([*(f"{bound:g}" for bound in self._bounds), "+Inf"], counts, strict=True):
                so_far += count
                yield f"{self.name}_bucket{_braces([*self.labels, 'le'], (*labels, bound))} {so_far}"
            yield f"{self.name}_sum{_braces(self.labels, labels)} {total:.6f}"
            yield f"{self.name}_count{_braces(self.labels, labels)} {so_far}"


class Metrics:
    """All that one app counts: each has its own, so that tests and neighbours do not add up."""

    def __init__(self) -> None:
        self.received = Counter("eca_requests_received_total", "Requests whose head arrived.")
        self.requests = Counter(
            "eca_requests_total", "Requests that ended, by status; gone where the caller hung up.", ("route", "code")
        )
        self.request_seconds = Histogram("eca_request_seconds", "From the head of a request to its answer.", ("route",))
        self.decode_seconds = Histogram("eca_decode_seconds", "Decoding of one picture.", ("model",))
        self.queue_seconds = Histogram("eca_queue_seconds", "Waiting of one picture.", ("model",))
        self.engine_seconds = Histogram("eca_engine_seconds", "Batch of one picture in the engine.", ("model",))
        self.batch_size = Histogram("eca_batch_size", "Pictures in the batch of one picture.", ("model",), SIZES)

    def render(self, gauges: Iterable[tuple[str, str, Mapping[str, str], float]]) -> str:
        """Write everything down.

        Args:
            gauges: What is measured at this moment: name, sentence, labels and value; those of one name in a row.
        """
        lines = []
        for one in vars(self).values():
            lines += [f"# HELP {one.name} {one.about}", f"# TYPE {one.name} {one.kind}", *one.lines()]
        last = ""
        for name, about, labels, value in gauges:
            if name != last:
                lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
                last = name
            lines.append(f"{name}{_braces(list(labels), tuple(labels.values()))} {value:g}")
        return "\n".join(lines) + "\n"


def _braces(names: Sequence[str], values: Labels) -> str:
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
