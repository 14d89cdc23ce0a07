"""The page at / and its files: static, from the folder web/, without a build step."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

_WEB = Path(str(files("eca_service"))) / "web"

# Images that the user chose are shown from blob: URLs; scripts, styles and connections are those of this origin.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_RANGES = {"accept-ranges": "none"}


class _WholeFile(FileResponse):
    """A file whose parts cannot be requested: a Range header is ignored, as RFC 9110, section 14.2 allows."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_without_range(scope), receive, send)


class _WholeFiles(StaticFiles):
    """Files whose parts cannot be requested."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_without_range(scope), receive, send)

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(_NO_RANGES)
        return response


def _without_range(scope: Scope) -> Scope:
    return {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}


router = APIRouter()
static_files = _WholeFiles(directory=_WEB)
"""To be mounted at /static."""


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Return the page."""
    headers = {"content-security-policy": _CONTENT_SECURITY_POLICY, **_NO_RANGES}
    return _WholeFile(_WEB / "index.html", headers=headers)
