"""The hub as an ASGI application: the table of routes, and the answer to everything that goes wrong.

Knows which route belongs to which path; knows nothing about what the routes do.
"""

import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .call import Call, Hub, read_body, refusal_response
from .errors import HubRefusal, disk_full, is_disk_full, repo_not_found
from .routes import account, discussions, download, files, lfs, pages, refs, repos, upload, xet
from .store import Store
from .users import Users

Handler = Callable[[Call], Response] | Callable[[Call], Awaitable[Response]]

LFS_PART_BYTES = 64 << 20
_log = logging.getLogger(__name__)

_REPO = "/{owner}/{name}"
_API = "/api/{kind:kind}/{owner}/{name}"
_XET = "/-/xet/{store}/{writer}"

_TABLE: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/api/whoami-v2", account.whoami),
    ("POST", "/api/validate-yaml", account.validate_yaml),
    ("POST", "/api/repos/create", repos.create),
    ("DELETE", "/api/repos/delete", repos.delete),
    ("POST", "/api/repos/move", repos.move),
    ("GET", "/api/{kind:kind}", repos.list_repos),
    ("GET", _API, repos.info),
    ("GET", _API + "/revision/{rev}", repos.info),
    ("PUT", _API + "/settings", repos.settings),
    ("GET", _API + "/auth-check", repos.auth_check),
    ("GET", _API + "/auth-check/write", repos.auth_check),
    ("GET", _API + "/refs", refs.list_refs),
    ("GET", _API + "/commits/{rev}", refs.list_commits),
    ("POST", _API + "/branch/{rev}", refs.create_branch),
    ("DELETE", _API + "/branch/{rev}", refs.delete_branch),
    ("POST", _API + "/tag/{rev}", refs.create_tag),
    ("DELETE", _API + "/tag/{rev}", refs.delete_tag),
    ("POST", _API + "/super-squash/{rev}", refs.squash),
    ("GET", _API + "/tree/{rev}", files.list_tree),
    ("GET", _API + "/tree/{rev}/{path:path}", files.list_tree),
    ("POST", _API + "/paths-info/{rev}", files.paths_info),
    ("POST", _API + "/preupload/{rev}", upload.preupload),
    ("POST", _API + "/commit/{rev}", upload.commit),
    ("GET", _API + "/xet-write-token/{rev}", xet.write_token),
    ("GET", _API + "/discussions", discussions.list_discussions),
    ("POST", _API + "/discussions", discussions.create),
    ("GET", _API + "/discussions/{number}", discussions.details),
    ("POST", _API + "/discussions/{number}/comment", discussions.comment),
    ("POST", _API + "/discussions/{number}/comment/{event}/edit", discussions.edit_comment),
    ("POST", _API + "/discussions/{number}/title", discussions.rename),
    ("POST", _API + "/discussions/{number}/status", discussions.change_status),
    ("POST", _API + "/discussions/{number}/merge", discussions.merge),
    ("POST", _XET + "/v1/xorbs/default/{xorb}", xet.put_xorb),
    ("POST", _XET + "/v1/shards", xet.put_shard),
    ("PUT", "/-/lfs/{oid}", lfs.put_object),
    ("PUT", "/-/lfs/{oid}/{upload}/{part}", lfs.put_part),
    ("POST", "/-/lfs/{oid}/{upload}", lfs.complete),
    ("GET", "/", pages.index),
)
_TABLE_OF_EACH_KIND: tuple[tuple[str, str, Handler], ...] = (
    ("POST", ".git/info/lfs/objects/batch", lfs.batch),
    ("POST", ".git/info/lfs/verify", lfs.verify),
    ("GET", "/resolve/{rev}/{path:path}", download.resolve),
    ("GET", "/tree/{rev}", pages.repo),
    ("GET", "/commit/{rev}", pages.repo),
    ("GET", "", pages.repo),
)
