"""The hub as an ASGI application: the table of routes, and the answer to everything that goes wrong.

Knows which route belongs to which path; knows nothing about what the routes do.
"""

import inspect
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_hub.localhub.auth import Users
from eca_hub.localhub.context import Call, Hub, read_body, refusal_response
from eca_hub.localhub.errors import HubRefusal, disk_full, is_disk_full, repo_not_found
from eca_hub.localhub.routes import account, discussions, download, files, lfs, pages, refs, repos, upload, xet
from eca_hub.localhub.store import Store
from eca_hub.localhub.validation import REPO_TYPES, RepoType

Handler = Callable[[Call], Response] | Callable[[Call], Awaitable[Response]]

LFS_PART_BYTES = 64 << 20
_REPO_PATHS = tuple(f"/api/{repo_type}s/" for repo_type in REPO_TYPES)
_log = logging.getLogger(__name__)

_XET = "/-/xet/{store}/{writer}"

_ONCE: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", pages.index),
    ("GET", "/api/whoami-v2", account.whoami),
    ("GET", "/api/settings/repositories", account.repositories),
    ("GET", "/api/organizations/{owner}/settings/repositories", account.repositories),
    ("POST", "/api/validate-yaml", account.validate_yaml),
    ("POST", "/api/repos/create", repos.create),
    ("DELETE", "/api/repos/delete", repos.delete),
    ("POST", "/api/repos/move", repos.move),
    ("POST", _XET + "/v1/xorbs/default/{xorb}", xet.put_xorb),
    ("POST", _XET + "/v1/shards", xet.put_shard),
    ("PUT", "/-/lfs/{oid}", lfs.put_object),
    ("PUT", "/-/lfs/{oid}/{upload}/{part}", lfs.put_part),
    ("POST", "/-/lfs/{oid}/{upload}", lfs.complete),
)
_UNDER_API: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "", repos.info),
    ("GET", "/revision/{rev}", repos.info),
    ("PUT", "/settings", repos.settings),
    ("GET", "/auth-check", repos.auth_check),
    ("GET", "/auth-check/write", repos.auth_check),
    ("GET", "/refs", refs.list_refs),
    ("GET", "/commits/{rev}", refs.list_commits),
    ("POST", "/branch/{rev}", refs.create_branch),
    ("DELETE", "/branch/{rev}", refs.delete_branch),
    ("POST", "/tag/{rev}", refs.create_tag),
    ("DELETE", "/tag/{rev}", refs.delete_tag),
    ("POST", "/super-squash/{rev}", refs.squash),
    ("GET", "/tree/{rev}", files.list_tree),
    ("GET", "/tree/{rev}/{path:path}", files.list_tree),
    ("POST", "/paths-info/{rev}", files.paths_info),
    ("POST", "/preupload/{rev}", upload.preupload),
    ("POST", "/commit/{rev}", upload.commit),
    ("GET", "/xet-write-token/{rev}", xet.write_token),
    ("GET", "/discussions", discussions.list_discussions),
    ("POST", "/discussions", discussions.create),
    ("GET", "/discussions/{number}", discussions.details),
    ("POST", "/discussions/{number}/comment", discussions.comment),
    ("POST", "/discussions/{number}/comment/{event}/edit", discussions.edit_comment),
    ("POST", "/discussions/{number}/title", discussions.rename),
    ("POST", "/discussions/{number}/status", discussions.change_status),
    ("POST", "/discussions/{number}/merge", discussions.merge),
)
_UNDER_PAGE: tuple[tuple[str, str, Handler], ...] = (
    ("POST", ".git/info/lfs/objects/batch", lfs.batch),
    ("POST", ".git/info/lfs/verify", lfs.verify),
    ("GET", "/resolve/{rev}/{path:path}", download.resolve),
    ("GET", "/tree/{rev}", pages.repo),
    ("GET", "/commit/{rev}", pages.repo),
    ("GET", "", pages.repo),
)


def create_app(store: Store, users: Users, *, lfs_part_bytes: int = LFS_PART_BYTES) -> ASGIApp:
    """Make the hub, to be served by itself or mounted under a path of another application.

    Args:
        store: An opened store. The application does not close it.
        users: Whose tokens are valid.
        lfs_part_bytes: LFS objects that are larger are sent in parts of this size.
    """
    hub = Hub(store, users, lfs_part_bytes)
    routes = [_route(hub, method, path, handler) for method, path, handler in _ONCE]
    for repo_type in REPO_TYPES:
        api, page = f"/api/{repo_type}s", "" if repo_type == "model" else f"/{repo_type}s"
        routes.append(_route(hub, "GET", api, repos.list_repos, repo_type))
        routes += [
            _route(hub, method, f"{api}/{{owner}}/{{name}}{path}", handler, repo_type)
            for method, path, handler in _UNDER_API
        ]
        routes += [
            _route(hub, method, f"{page}/{{owner}}/{{name}}{path}", handler, repo_type)
            for method, path, handler in _UNDER_PAGE
        ]
    handlers = {HubRefusal: _on_refusal, HTTPException: _on_no_route, OSError: _on_os_error, Exception: _on_bug}
    app = Starlette(routes=routes, exception_handlers={**handlers, ClientDisconnect: _on_disconnect})
    app.router.redirect_slashes = False
    return _Envelope(app)


class _Envelope:
    """What holds for every request: routing by the path as it was sent, and an id on every answer.

    Starlette routes on the decoded path, in which the slash of `refs%2Fpr%2F1` can no longer be told from one that
    divides.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
        request_id = _asked_id(scope["headers"]) or secrets.token_hex(8).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        await self._app({**scope, "path": raw_path.decode("latin-1")}, receive, send_with_id)


def _asked_id(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The id by which the client looks for its request in logs, if it can stand in a header."""
    given = dict(reversed(headers))
    asked = given.get(b"x-request-id") or given.get(b"x-amzn-trace-id") or b""
    return asked if re.fullmatch(rb"[A-Za-z0-9._:;=-]{1,128}", asked) else None


def _route(hub: Hub, method: str, path: str, handler: Handler, repo_type: RepoType = "model") -> Route:
    is_async = inspect.iscoroutinefunction(handler)
    # Links under /-/ carry their own permission in place of a user's token.
    needs_valid_token = not path.startswith("/-/")

    async def endpoint(request: Request) -> Response:
        call = Call(hub, request, repo_type)
        if needs_valid_token:
            call.check_token()
        if is_async:
            response = handler(call)
            assert inspect.isawaitable(response)
            return await response
        call.body = await read_body(request)
        return await run_in_threadpool(handler, call)  # type: ignore[arg-type]

    return Route(path, endpoint, methods=[method])


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubRefusal)
    return refusal_response(error)


async def _on_no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    # A name without an owner fits no route; the client asks for such names and expects the answer for a missing
    # repository.
    if error.status_code == 404 and (path.startswith(_REPO_PATHS) or "/resolve/" in path):
        return refusal_response(repo_not_found("authorization" in request.headers))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return refusal_response(HubRefusal(error.status_code, code, error.detail, dict(error.headers or {})))


async def _on_os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if is_disk_full(error):
        return refusal_response(disk_full())
    return await _on_bug(request, error)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refusal_response(HubRefusal(500, "internal_error", "The hub failed; its log says why."))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
