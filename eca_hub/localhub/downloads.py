"""Route that sends the content of a file, whole or in part."""

import re
from urllib.parse import quote

from starlette.responses import Response

from eca_hub.localhub.commits import StoredFile
from eca_hub.localhub.context import RequestContext
from eca_hub.localhub.errors import HubHTTPError, entry_not_found
from eca_hub.localhub.sendfile import FileRangeResponse
from eca_hub.localhub.validation import check_path

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
    found = _RANGE.fullmatch(text)
    first, last = found.groups() if found else ("", "")
    if first:
        start, end = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
    else:
        start, end = max(0, size_bytes - int(last or 0)), size_bytes
    if not found or start >= end:
        raise HubHTTPError(
            416,
            "bad_range",
            "Only one range within the file can be served.",
            {"Content-Range": f"bytes */{size_bytes}"},
        )
    return start, end, 206
