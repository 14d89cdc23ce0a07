"""Who may ask: keys, held only as hashes, compared in constant time.

A key comes as `Authorization: Bearer KEY`. Without keys everybody on this machine may ask, and nobody else: the
service then listens on loopback only, unless it is told to be insecure. Knows headers; nothing of bodies, pictures or
models.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

from service.errors import BadSetting, Forbidden, NotEnabled, Unauthorized


class Keys:
    """The keys that open the service.

    Args:
        keys: The keys themselves; they are not kept.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def gather(cls, environment: Mapping[str, str], file: str, variable: str = "ECA_API_KEYS") -> "Keys":
        """Take the keys in an environment variable, separated by commas, and those in a file, one a line.

        Raises:
            BadSetting: the file cannot be read, or holds no key.
        """
        keys = [key.strip() for key in environment.get(variable, "").split(",")]
        if file:
            try:
                in_file = [line.strip() for line in Path(file).read_text().splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise BadSetting(f"The keys in {file} cannot be read: {reason}.") from None
            if not any(in_file):
                raise BadSetting(f"The file {file} holds no key.", hint="Write one key a line.")
            keys += in_file
        return cls(key for key in keys if key)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._digests)

    def open_for(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request carries exactly one key, and it is one of these."""
        sent = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        # All digests are compared, so that the time tells neither which key came close nor how far.
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let a request pass that carries one of the keys, or any when there are none.

        Raises:
            Unauthorized: no key, more than one, or one that nobody knows.
        """
        if self and not self.open_for(headers):
            raise Unauthorized("This needs a key.", hint="Send it as Authorization: Bearer KEY.")


def check_admin(headers: Iterable[tuple[bytes, bytes]], admin: Keys, inference: Keys) -> None:
    """Let a request pass that carries an admin key.

    Raises:
        NotEnabled: there are no admin keys, so nobody may.
        Unauthorized: no key, more than one, or one that nobody knows.
        Forbidden: a key that opens only inference.
    """
    sent = list(headers)
    if not admin:
        raise NotEnabled("Models cannot be changed here.", hint="Set ECA_ADMIN_KEYS and start the service again.")
    if admin.open_for(sent):
        return
    if inference.open_for(sent):
        raise Forbidden("This key may ask, but not change models.", hint="Send an admin key.")
    raise Unauthorized("This needs an admin key.", hint="Send it as Authorization: Bearer KEY.")


def check_exposure(host: str, keys: Keys, *, insecure: bool) -> None:
    """Refuse to be open to the network by accident.

    Raises:
        BadSetting: the host is reachable from elsewhere, and there is no key.
    """
    if not (keys or insecure or _is_loopback(host)):
        raise BadSetting(
            f"On {host} anybody who reaches this machine could use the service.",
            hint="Set ECA_API_KEYS to a key, or say --insecure.",
        )


def check_hub_exposure(host: str, hub_root: str, hub_users: str) -> None:
    """Refuse to open a hub to the network with a token that nobody chose.

    Raises:
        BadSetting: the host is reachable from elsewhere, and there is a hub without users.
    """
    if hub_root and not (hub_users or _is_loopback(host)):
        raise BadSetting(
            f"On {host} other machines reach the hub of {hub_root}, and nobody has chosen its tokens.",
            hint='Set --hub_users to a JSON file such as {"alice": "token-of-alice"}.',
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
