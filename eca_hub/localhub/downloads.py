"""Send the content of a file, whole or in part, by the sendfile system call.

Bytes go from the page cache to the socket, not through Python: `SendfileH11Protocol` offers this to the application as
an ASGI extension. Mounted in another server, `FileRangeResponse` sends pieces instead.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any
from urllib.parse import quote

import h11
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from eca_hub.localhub import timeouts
from eca_hub.localhub.blobs import READ_BYTES
from eca_hub.localhub.commits import StoredFile
from eca_hub.localhub.context import RequestContext
from eca_hub.localhub.errors import HubHTTPError, entry_not_found
from eca_hub.localhub.validation import check_path

BLOCK_BYTES = 1 << 20
"""Bytes that a client must receive in the time that it would have to send as many."""

EXTENSION = "eca_hub.sendfile"
"""Key in the scope's `extensions`; its value is a coroutine function of a file, an offset and a number of bytes."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
# Files are not trusted: a browser must neither guess their type nor run them.
_INERT = {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff"}


def download(context: RequestContext) -> Response:
    """GET and HEAD /OWNER/NAME/resolve/REVISION/PATH."""
    repo_id, repo = context.readable_repo()
    context.check_gate(repo_id, repo)
    commit_id = repo.resolve(context.param("rev"))
    path = check_path(context.param("path"))
    file = repo.commit(commit_id).files.get(path)
    if file is None:
        raise entry_not_found(path, commit_id)
    headers = _download_headers(file, path) | {"X-Repo-Commit": commit_id}
    if headers["ETag"] in [tag.strip() for tag in context.request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    start, end, status = _parse_range(context, file, headers["ETag"])
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    headers["Content-Length"] = str(end - start)
    media_type = "application/octet-stream" if file.is_lfs else "text/plain; charset=utf-8"
    if context.request.method == "HEAD":
        return Response(None, status, headers, media_type=media_type)
    file_content = context.store.blobs.open_verified(file.sha256)
    return FileRangeResponse(file_content, start, end, status, headers, media_type)


def _download_headers(file: StoredFile, path: str) -> dict[str, str]:
    name = quote(path.rpartition("/")[2], safe="")
    etag = f'"{file.etag}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Content-Disposition": f"{'attachment' if file.is_lfs else 'inline'}; filename*=UTF-8''{name}",
        **_INERT,
    }
    return headers | ({"X-Linked-ETag": etag, "X-Linked-Size": str(file.size_bytes)} if file.is_lfs else {})


def _parse_range(context: RequestContext, file: StoredFile, etag: str) -> tuple[int, int, int]:
    """Return the first byte, the byte after the last one, and the status. One range is served; several are refused."""
    size_bytes = file.size_bytes
    text = context.request.headers.get("range", "")
    if not text.startswith("bytes=") or context.request.headers.get("if-range", etag) != etag:
        return 0, size_bytes, 200
    match = _RANGE.fullmatch(text)
    first, last = match.groups() if match else ("", "")
    if first:
        start, end = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
    else:
        start, end = max(0, size_bytes - int(last or 0)), size_bytes
    if not match or start >= end:
        raise HubHTTPError(
            416,
            "bad_range",
            "Only one range within the file can be served.",
            {"Content-Range": f"bytes */{size_bytes}"},
        )
    return start, end, 206


class SendfileH11Protocol(timeouts.TimeoutH11Protocol):
    """Adds the extension to the scope of every request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app = self.app

        async def app_with_sendfile(scope: Any, receive: Any, send: Any) -> None:
            extensions = {**(scope.get("extensions") or {}), EXTENSION: self._send_file}
            await app({**scope, "extensions": extensions}, receive, send)

        self.app = app_with_sendfile

    async def _send_file(self, file: BufferedReader, offset: int, num_bytes: int) -> None:
        """Send a part of a file as the body of the response whose headers have been sent."""
        if num_bytes == 0:
            return
        # h11 only counts the bytes, which it takes from anything that has a length.
        self.conn.send_with_data_passthrough(h11.Data(data=_FileRange(num_bytes)))  # type: ignore[arg-type]
        end = offset + num_bytes
        # An OSError means that the client has disconnected, a TimeoutError, which is one, that it does not receive.
        with contextlib.suppress(OSError):
            while offset < end and not self.transport.is_closing():
                num_bytes = min(BLOCK_BYTES, end - offset)
                async with asyncio.timeout(timeouts.BODY_GRACE_S + num_bytes / timeouts.BODY_BYTES_PER_S):
                    num_sent = await self.loop.sendfile(self.transport, file, offset, num_bytes)
                if num_sent < num_bytes:
                    break
                offset += num_sent
        if offset < end:
            # Or the file became shorter: the connection ends before Content-Length, which clients report.
            self.transport.abort()
            # The event loop reports it to uvicorn in its next round.
            while not self.cycle.disconnected:
                await asyncio.sleep(0)


class FileRangeResponse(Response):
    """A part of an open file, which is closed afterwards.

    Args:
        file: The file.
        start: First byte.
        end: The byte after the last one.
        status_code: Status.
        headers: Headers, with Content-Length.
        media_type: Content type.
    """

    def __init__(
        self,
        file: BufferedReader,
        start: int,
        end: int,
        status_code: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(None, status_code, headers, media_type)
        self._file = file
        self._start = start
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        with self._file:
            send_file = (scope.get("extensions") or {}).get(EXTENSION)
            if send_file is None:
                streaming = StreamingResponse(self._read(), self.status_code)
                streaming.raw_headers = self.raw_headers
                await streaming(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send_file(self._file, self._start, self._end - self._start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _read(self) -> Iterator[bytes]:
        position = self._start
        self._file.seek(position)
        while position < self._end:
            piece = self._file.read(min(READ_BYTES, self._end - position))
            if not piece:
                # The connection ends before Content-Length, which clients report.
                raise OSError("a blob became shorter while it was read")
            position += len(piece)
            yield piece


class _FileRange:
    """Placeholder with the length of a part of a file."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def __len__(self) -> int:
        return self._num_bytes
