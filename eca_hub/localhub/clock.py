"""The time of day, written as the Hub writes it. Knows nothing else."""

from datetime import UTC, datetime


def now() -> str:
    """This moment, as `2026-01-31T12:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
