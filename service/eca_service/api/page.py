"""The page at / and its files: static, from the folder web/, without a build step."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_WEB = Path(str(files("eca_service"))) / "web"

# Images that the user chose are shown from blob: URLs; scripts, styles and connections are those of this origin.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter()
static_files = StaticFiles(directory=_WEB)
"""To be mounted at /static."""


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(_WEB / "index.html", headers={"content-security-policy": _CONTENT_SECURITY_POLICY})
