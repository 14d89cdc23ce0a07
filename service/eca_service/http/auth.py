"""API keys: kept as SHA-256 digests, compared in constant time, read again when their file changes.

A key comes as `Authorization: Bearer KEY`. A line of a key file is a key, or a key and the moment at which it expires:

    key-of-alice
    key-of-bob 2027-01-31
    key-of-a-guest 2026-12-24T18:00:00Z

A key that is removed from the file or has expired stops working within two seconds, without a restart. What a change
of the file does:

- The file is there and empty: every key of it is revoked, and requests without another valid key get 401.
- The file is missing, unreadable or malformed: the last keys that were read stay valid, so that a volume that is
  briefly unmounted does not lock every client out. An error is logged at once and every minute until the file is back.
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

from eca_hub.loopback import is_loopback
from eca_service.errors import BadSetting, Forbidden, NotEnabled, Unauthorized

Headers = Iterable[tuple[bytes, bytes]]
_Stamp = tuple[int, int, int]

_POLL_S = 1.0
"""Time between two checks of a file. A file must also be unchanged for so long, as it may be half written."""
_REPEAT_ERROR_S = 60.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    expires_at_s: float = math.inf
    """On `time.time`."""


class KeyFile:
    """The keys in a file, read again when it changes.

    Args:
        path: The file.
        clock: Returns the time, as `time.time` does.

    Raises:
        BadSetting: the file cannot be read, has no key, or has a malformed line.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._stamp = self._seen = self._stat()
        self._keys = _parse_file(self._path)
        if not self._keys:
            raise BadSetting(f"The file {self._path} holds no key.", hint="Write one key a line.")
        self._polled_at_s = clock()
        self._error = ""
        self._logged_at_s = -math.inf

    def keys(self) -> Sequence[_Key]:
        """Return the current keys; checks the file once a second at most."""
        now_s = self._clock()
        # The system clock may jump in both directions.
        if abs(now_s - self._polled_at_s) >= _POLL_S:
            self._polled_at_s = now_s
            self._poll(now_s)
        return self._keys

    def _poll(self, now_s: float) -> None:
        stamp = self._stat()
        was_seen, self._seen = stamp == self._seen, stamp
        if stamp == self._stamp:
            if self._error and abs(now_s - self._logged_at_s) >= _REPEAT_ERROR_S:
                self._log_error(now_s)
            return
        is_settled = stamp is not None and now_s - stamp[0] / 1e9 >= _POLL_S
        if not (is_settled or was_seen):
            return
        self._stamp = stamp
        try:
            self._keys, self._error = _parse_file(self._path), ""
        except BadSetting as error:
            self._error = f"The last keys that were read stay valid: {error}"
            self._log_error(now_s)
            return
        if self._keys:
            _logger.info("%s has changed: %d keys", self._path, len(self._keys))
        else:
            _logger.error("%s is empty: all of its keys are revoked", self._path)

    def _log_error(self, now_s: float) -> None:
        self._logged_at_s = now_s
        _logger.error("%s", self._error)

    def _stat(self) -> _Stamp | None:
        """Return what changes with the file, or None where there is no file."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


class ApiKeys:
    """A set of keys.

    Args:
        keys: Keys that never expire.
        file: A file with more keys, which may change.
        clock: Returns the time, as `time.time` does.
    """

    def __init__(
        self, keys: Iterable[str] = (), file: KeyFile | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = [_Key(_digest(key.encode())) for key in keys]
        self._file = file
        self._clock = clock

    @classmethod
    def from_env(cls, environment: Mapping[str, str], file: str, variable: str = "ECA_API_KEYS") -> "ApiKeys":
        """Read the keys of an environment variable, separated by commas, and those of a file, one a line.

        Raises:
            BadSetting: the variable is not empty and has no key or is not UTF-8, or the file cannot be read, has no
                key, or has a malformed line.
        """
        text = environment.get(variable, "")
        keys = [key for word in text.split(",") if (key := word.strip())]
        if text and not keys:
            raise BadSetting(f"{variable} is set and holds no key.", hint="Set it to a key, or unset it.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadSetting(f"{variable} has bytes that are not UTF-8.", hint="Clients could not send such a key.")
        return cls(keys, KeyFile(file) if file else None)

    def __bool__(self) -> bool:
        """Whether a key is required. A key file requires one even when all of its keys are revoked or expired."""
        return bool(self._keys or self._file)

    def authenticates(self, headers: Headers) -> bool:
        """Whether a request carries exactly one key, and it is one of these."""
        sent = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        now_s, digest = self._clock(), _digest(key)
        keys = [*self._keys, *self._file.keys()] if self._file else self._keys
        # Every digest is compared, so that the response time does not depend on which key is close.
        matches = [hmac.compare_digest(digest, each.digest) and now_s < each.expires_at_s for each in keys]
        return scheme.lower() == b"bearer" and any(matches)

    def check(self, headers: Headers) -> None:
        """Accept a request that carries one of the keys, and every request when no key is required.

        Raises:
            Unauthorized: no key, more than one, or an unknown one.
        """
        if self and not self.authenticates(headers):
            raise Unauthorized("An API key is required.", hint="Send it as Authorization: Bearer KEY.")


def check_admin_key(headers: Headers, admin_keys: ApiKeys, api_keys: ApiKeys) -> None:
    """Accept a request that carries an admin key.

    Raises:
        NotEnabled: there are no admin keys.
        Unauthorized: no key, more than one, or an unknown one.
        Forbidden: an inference key.
    """
    sent = list(headers)
    if not admin_keys:
        raise NotEnabled("Changing models is not enabled.", hint="Set ECA_ADMIN_KEYS and restart the service.")
    if admin_keys.authenticates(sent):
        return
    if api_keys.authenticates(sent):
        raise Forbidden("This key allows inference, but not changing models.", hint="Send an admin key.")
    raise Unauthorized("An admin key is required.", hint="Send it as Authorization: Bearer KEY.")


def check_bind_address(host: str, keys: ApiKeys, *, insecure: bool) -> None:
    """Refuse to listen beyond loopback without keys.

    Raises:
        BadSetting: the host is reachable from other machines, and there is no key.
    """
    if not (keys or insecure or is_loopback(host)):
        raise BadSetting(
            f"Listening on {host} without an API key would let any machine on the network use the service.",
            hint="Set ECA_API_KEYS to a key, or add --insecure.",
        )


def check_hub_bind_address(host: str, hub_root: str, hub_users: str) -> None:
    """Refuse to serve a hub beyond loopback with generated tokens.

    Raises:
        BadSetting: the host is reachable from other machines, and the hub has no users file.
    """
    if hub_root and not (hub_users or is_loopback(host)):
        raise BadSetting(
            f"Listening on {host} would let other machines reach the hub in {hub_root}, which has no users file.",
            hint='Set --hub_users to a JSON file such as {"alice": "token-of-alice"}.',
        )


def _parse_file(path: Path) -> list[_Key]:
    try:
        # utf-8-sig: editors on Windows write a byte order mark.
        lines = [line.split() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadSetting(f"The key file {path} cannot be read: {reason}.") from None
    return [_parse_line(path, number, words) for number, words in enumerate(lines, 1) if words]


def _parse_line(path: Path, number: int, words: list[str]) -> _Key:
    """Parse one line. An error never repeats the line: it may hold a key."""
    try:
        key, *rest = words
        expires_at_s = math.inf
        if rest:
            [moment] = rest
            expires_at = datetime.fromisoformat(moment)
            expires_at_s = (expires_at if expires_at.tzinfo else expires_at.replace(tzinfo=UTC)).timestamp()
        return _Key(_digest(key.encode()), expires_at_s)
    except ValueError:
        raise BadSetting(
            f"Line {number} of {path} is neither a key nor a key and the moment at which it expires.",
            hint="Write KEY, KEY 2027-01-31 or KEY 2027-01-31T18:00:00Z, in UTC.",
        ) from None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
