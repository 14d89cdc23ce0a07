"""A hub that checks and stores nothing: the time of a push or a pull with it is the time of the stock client alone.

It implements the part of the protocol that one commit and one download need, discards uploads and sends a file from
the page cache, so that `hub.py` can separate the client's share of a figure from ours.
"""

import contextlib
import hashlib
import json
import multiprocessing
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_COMMIT = "0123456789" * 4
_PIECE_BYTES = 1 << 20
_MANY_BYTES = 1 << 20
"""Files from this size on are uploaded by Xet or LFS."""


@contextlib.contextmanager
def running(source: Path) -> Iterator[str]:
    """Run such a hub as a process of its own, and yield its URL.

    Args:
        source: The file that every download gets.
    """
    parent_end, child_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(source, child_end), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{parent_end.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(source: Path, ready: Connection) -> None:
    with source.open("rb") as file:
        _Handler.etag = hashlib.file_digest(file, "sha256").hexdigest()
    _Handler.source = source
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    ready.send(server.server_address[1])
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    source: Path
    etag: str

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._send_file()
        elif "/xet-write-token/" in self.path:
            # An address of its own for every repository: what was sent for one is not left out for the next.
            repo_id = self.path.split("/models/")[1].rpartition("/xet-write-token")[0]
            self._respond({"casUrl": f"{self._url}/cas/{repo_id}", "accessToken": "none", "exp": 4_102_444_800})
        else:
            self._respond({"error": "not here"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        if "/v1/xorbs/" in self.path:
            self._discard_body()
            self._respond({"was_inserted": True})
            return
        if self.path.endswith("/objects/batch"):
            upload = {"href": f"{self._url}/lfs"}
            objects = json.loads(self._body())["objects"]
            self._respond({"objects": [{**each, "actions": {"upload": upload}} for each in objects]})
            return
        body = self._body()
        if self.path.endswith("/repos/create"):
            self._respond({"url": f"{self._url}/{json.loads(body)['organization']}/{json.loads(body)['name']}"})
        elif "/preupload/" in self.path:
            self._respond({"files": [_upload_mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/v1/shards"):
            self._respond({"result": 1})
        elif "/commit/" in self.path:
            repo_id = self.path.split("/models/")[1].rpartition("/commit/")[0]
            url = f"{self._url}/{repo_id}/commit/{_COMMIT}"
            self._respond({"success": True, "commitOid": _COMMIT, "commitUrl": url})
        elif self.path.endswith("/validate-yaml"):
            self._respond({"errors": [], "warnings": []})
        else:
            self._respond({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        self._discard_body()
        self._respond({})

    @property
    def _url(self) -> str:
        return f"http://{self.headers['Host']}"

    def _send_file(self) -> None:
        size_bytes = self.source.stat().st_size
        self.send_response(200)
        for name, value in {
            "X-Repo-Commit": _COMMIT,
            "ETag": f'"{self.etag}"',
            "X-Linked-Size": str(size_bytes),
            "Content-Length": str(size_bytes),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with self.source.open("rb") as file:
                self.connection.sendfile(file)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size_bytes := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _discard_body(self) -> None:
        num_left, piece = int(self.headers["Content-Length"]), memoryview(bytearray(_PIECE_BYTES))
        while num_left:
            num_left -= self.rfile.readinto(piece[: min(num_left, _PIECE_BYTES)])

    def _respond(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["size"] >= _MANY_BYTES else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
