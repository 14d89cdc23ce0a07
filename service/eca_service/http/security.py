"""Who may ask, and from where.

A key comes as `Authorization: Bearer KEY`. Without keys everybody on this machine may ask, and nobody else: the
service then listens on loopback only, unless it is told to be insecure. Knows headers; nothing of bodies, pictures or
models.
"""

import ipaddress
from collections.abc import Iterable

from eca_service.errors import BadSetting, Forbidden, NotEnabled, Unauthorized
from eca_service.http.auth import Keys


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
