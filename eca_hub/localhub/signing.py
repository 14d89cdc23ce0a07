"""Links and tokens that carry their own permission: the stock client uploads bytes without a login.

Knows nothing about what is permitted: a permission is a list of words, valid until a moment.
"""

import hashlib
import hmac
import time

LIFETIME_S = 12 * 3600


def until() -> int:
    """The moment until which a permission given now is valid, in seconds since 1970."""
    return int(time.time()) + LIFETIME_S


def sign(key: bytes, valid_until: int, *words: str) -> str:
    """Return the signature of a permission."""
    message = "\0".join((str(valid_until), *words)).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def is_signed(key: bytes, signature: str, valid_until: str, *words: str) -> bool:
    """Whether this hub gave this permission and it is still valid."""
    if (
        not valid_until.isascii()
        or not valid_until.isdigit()
        or len(valid_until) > 12
        or int(valid_until) < time.time()
    ):
        return False
    return hmac.compare_digest(sign(key, int(valid_until), *words).encode(), signature.encode())
