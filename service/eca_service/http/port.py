"""The port: opened before anything slow is done, and closed so that nobody whom it has let in is sent away.

Knows sockets; nothing of HTTP.
"""

import contextlib
import ctypes
import socket
import struct

from eca_service.errors import BadSetting

_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("@HBBI", 0x06, 0, 0, 0)
"""A program of the kernel's packet filter: return 0, which keeps no byte (linux/filter.h)."""


def open_port(host: str, port: int) -> socket.socket:
    """Listen, before anything slow is done: callers may connect at once, and a port that is taken is found at once.

    Raises:
        BadSetting: the port is taken, or the host has no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio gives TCP_NODELAY only to sockets that name TCP as their protocol; without it an answer takes 40 ms.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadSetting(
            f"Cannot listen on {host} port {port}: {reason}.", hint="Set --port to a free one, or to 0."
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where callers find us."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def turn_newcomers_away(listener: socket.socket) -> None:
    """Let nobody else in, while those who wait at the port can still be accepted.

    Closing a port resets whoever the kernel has let in and the program has not accepted yet: they have sent their
    request and believe that it is served. So the kernel first drops every packet that comes to the port itself. Who
    connects now tries again a second later, and is refused by the port that is closed by then. Where there is no such
    filter (it is Linux's), the few who come in the last moment are reset.
    """
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
