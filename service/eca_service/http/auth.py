"""The keys that open the service: held only as hashes, compared in constant time, read again when their file changes.

A line of the file is a key, or a key and the day or moment from which on it opens nothing:

    key-of-alice
    key-of-bob 2027-01-31
    key-of-a-visitor 2026-12-24T18:00:00Z

A key that is taken out of the file, or is over, opens nothing a second or two later, without a restart. A file that is
being written, or that cannot be read, or is empty changes nothing but the log: it lets nobody in, and nobody is locked
out. Knows headers and one file; nothing of requests.
"""

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from eca_service.errors import BadSetting, Unauthorized

Stamp = tuple[int, int, int]

_LOOK_S = 1.0
"""Between two looks at a file; and how long it must have been as it is, because writers write in pieces."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    until_s: float = math.inf
    """When it ends, on `time.time`."""


class KeysFile:
    """The keys in a file, as it is now.

    Args:
        path: The file.
        clock: Says what time it is, as `time.time` does.

    Raises:
        BadSetting: the file cannot be read, holds no key, or a line that is none.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._stamp = self._seen = self._look()
        self._keys = _keys_in(self._path)
        self._looked_s = clock()

    def keys(self) -> Sequence[_Key]:
        """The keys; looks at the file, but at most once a second."""
        now_s = self._clock()
        # Clocks of machines jump in both directions.
        if abs(now_s - self._looked_s) >= _LOOK_S:
            self._looked_s = now_s
            self._look_again(now_s)
        return self._keys

    def _look_again(self, now_s: float) -> None:
        stamp = self._look()
        was_seen, self._seen = stamp == self._seen, stamp
        if stamp == self._stamp:
            return
        is_old = stamp is not None and now_s - stamp[0] / 1e9 >= _LOOK_S
        if not (is_old or was_seen):
            return
        self._stamp = stamp
        try:
            self._keys = _keys_in(self._path)
            _logger.info("%s has changed: %d keys", self._path, len(self._keys))
        except BadSetting as error:
            _logger.error("the keys stay as they were: %s", error)

    def _look(self) -> Stamp | None:
        """What changes with the file; None where there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)


class Keys:
    """The keys that open the service.

    Args:
        keys: The keys themselves; they are not kept.
        file: Where more of them are, which may change.
        clock: Says what time it is, as `time.time` does.
    """

    def __init__(
        self, keys: Iterable[str] = (), file: KeysFile | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = [_Key(_digest(key.encode())) for key in keys]
        self._file = file
        self._clock = clock

    @classmethod
    def gather(cls, environment: Mapping[str, str], file: str, variable: str = "ECA_API_KEYS") -> "Keys":
        """Take the keys in an environment variable, separated by commas, and those in a file, one a line.

        Raises:
            BadSetting: the file cannot be read, holds no key, or a line that is none.
        """
        keys = [key.strip() for key in environment.get(variable, "").split(",")]
        return cls((key for key in keys if key), KeysFile(file) if file else None)

    def __bool__(self) -> bool:
        """Whether any are needed: those of a file may all be over, and are."""
        return bool(self._keys or self._file)

    def open_for(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request carries exactly one key, and it is one of these."""
        sent = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        now_s, digest = self._clock(), _digest(key)
        known = [*self._keys, *self._file.keys()] if self._file else self._keys
        # All digests are compared, so that the time tells neither which key came close nor how far.
        matches = [hmac.compare_digest(digest, one.digest) and now_s < one.until_s for one in known]
        return scheme.lower() == b"bearer" and any(matches)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let a request pass that carries one of the keys, or any when there are none.

        Raises:
            Unauthorized: no key, more than one, or one that nobody knows.
        """
        if self and not self.open_for(headers):
            raise Unauthorized("This needs a key.", hint="Send it as Authorization: Bearer KEY.")


def _keys_in(file: Path) -> list[_Key]:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadSetting(f"The keys in {file} cannot be read: {reason}.") from None
    keys = [_key_of(file, number, words) for number, words in enumerate(lines, 1) if words]
    if not keys:
        raise BadSetting(f"The file {file} holds no key.", hint="Write one key a line.")
    return keys


def _key_of(file: Path, number: int, words: list[str]) -> _Key:
    """Read a line. What stands in it is never repeated: it may be a key."""
    try:
        key, *rest = words
        until_s = math.inf
        if rest:
            [moment] = rest
            until = datetime.fromisoformat(moment)
            until_s = (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp()
        return _Key(_digest(key.encode()), until_s)
    except ValueError:
        raise BadSetting(
            f"Line {number} of {file} is neither a key nor a key and its last moment.",
            hint="Write KEY, KEY 2027-01-31 or KEY 2027-01-31T18:00:00Z, in UTC.",
        ) from None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
