"""Whether a host is this machine."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host is one of the loopback, so that only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
