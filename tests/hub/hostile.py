"""A hub of one repository that sends any malformed response that a test configures, down to the bytes on the wire."""

import contextlib
import hashlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from eca_hub.hub.package import FILES

MODEL_ID = "acme/digits"
COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_SENTINEL"


@dataclass
class Response:
    """What will be sent; a fault changes it."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None
    """Send so many bytes of the body, then reset the connection."""
    drip_s: float = 0.0
    """Send a byte, wait so long, and so on."""
    is_stalled: bool = False
    """Send a part of the body and then nothing."""
    stalled_at: int = 10
    """How long that part is."""
    is_dropped: bool = False
    """Reset the connection without a response."""


Fault = Callable[[str, str, int, Response], Any]
"""Called with the method, the name of the file, how often that was requested before, and the response to change."""


class FaultyHub:
    """Serves a package; `fault` may be replaced while it runs."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.commit = COMMIT
        self.fault: Fault = lambda *_: None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.num_bytes_sent = 0
        self.stop = threading.Event()
        self._counts: Counter[tuple[str, str]] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.respond(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultyHub"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        method = handler.command
        self.requests.append((method, handler.path, {key.lower(): value for key, value in handler.headers.items()}))
        response = self._correct_response(name, handler.headers.get("Range"))
        self.fault(method, name, self._counts[method, name], response)
        self._counts[method, name] += 1
        with contextlib.suppress(OSError):
            self._send(handler, response, method)

    def _correct_response(self, name: str, requested_range: str | None) -> Response:
        body = self.files.get(name)
        headers = {"X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        if body is None:
            return Response(404, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        if requested_range:
            start = int(requested_range.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return Response(206, headers, body[start:])
        return Response(200, headers, body)

    def _send(self, handler: BaseHTTPRequestHandler, response: Response, method: str) -> None:
        if response.is_dropped:
            self._reset(handler)
            return
        handler.send_response(response.status)
        for key, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if method == "HEAD":
            return
        if response.cut_at is not None or response.is_stalled:
            self._write(
                handler, response.body[: response.cut_at if response.cut_at is not None else response.stalled_at]
            )
            if response.is_stalled:
                self.stop.wait(20)
            self._reset(handler)
        elif response.drip_s:
            for index in range(len(response.body)):
                self._write(handler, response.body[index : index + 1])
                if self.stop.wait(response.drip_s):
                    break
            handler.close_connection = True
        else:
            self._write(handler, response.body)
            handler.close_connection = len(response.body) != int(
                response.headers.get("Content-Length", len(response.body))
            )

    def _reset(self, handler: BaseHTTPRequestHandler) -> None:
        """A reset and not an end: the client must not take what follows for the rest."""
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The reading side shares the descriptor, which closes with its last user.
        handler.rfile.close()
        handler.connection.close()
        handler.close_connection = True

    def _write(self, handler: BaseHTTPRequestHandler, piece: bytes) -> None:
        handler.wfile.write(piece)
        handler.wfile.flush()
        self.num_bytes_sent += len(piece)


def files_of(package: Path) -> dict[str, bytes]:
    """The bytes of a package by name."""
    return {name: (package / name).read_bytes() for name in FILES}
