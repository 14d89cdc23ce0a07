"""Repositories as a whole: create, delete, move, settings, information, and the list of them."""

from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from eca_hub.localhub.context import Call, json_response
from eca_hub.localhub.errors import bad_request, forbidden, gated
from eca_hub.localhub.repos import Repo
from eca_hub.localhub.serializers import repo_view
from eca_hub.localhub.validation import RepoId, check_name, check_owner, parse_repo_id, parse_repo_type

MAX_LIMIT = 1_000
_SORT_KEYS = {
    "lastModified": "lastModified",
    "last_modified": "lastModified",
    "createdAt": "createdAt",
    "created_at": "createdAt",
    "downloads": "downloads",
    "likes": "likes",
    "trendingScore": "trendingScore",
    "trending_score": "trendingScore",
}
_LIGHT = (
    "config",
    "siblings",
    "cardData",
    "model-index",
    "spaces",
    "safetensors",
    "usedStorage",
    "sha",
    "lastModified",
)
_EXPANDABLE = [
    "_id",
    "author",
    "baseModels",
    "cardData",
    "childrenModelCount",
    "config",
    "createdAt",
    "disabled",
    "downloads",
    "downloadsAllTime",
    "evalResults",
    "gated",
    "gguf",
    "inference",
    "inferenceProviderMapping",
    "lastModified",
    "library_name",
    "likes",
    "mask_token",
    "model-index",
    "pipeline_tag",
    "private",
    "safetensors",
    "sha",
    "siblings",
    "spaces",
    "tags",
    "transformersInfo",
    "trendingScore",
    "usedStorage",
    "widgetData",
    "resourceGroup",
    "xetEnabled",
    "description",
    "citation",
    "paperswithcode_id",
    "datasets",
    "models",
    "runtime",
    "sdk",
    "subdomain",
]
_SPACE_CARD = "---\ntitle: {title}\nsdk: static\n---\n"


def create(call: Call) -> Response:
    """POST /api/repos/create."""
    user = call.logged_in("Creating a repository")
    body = call.json_body()
    repo_id = _named_in(call, body)
    is_private = body.get("visibility", "private" if body.get("private") is True else "public") == "private"
    url = f"{call.base_url}/{repo_id.url_path}"
    if not user.may_write(repo_id):
        raise forbidden(f"You don't have the rights to create a {repo_id.type} under the namespace {repo_id.owner!r}")
    found = call.store.find(repo_id)
    if found and found[0].key == repo_id.key:
        # The client with exist_ok=True reads the URL out of the refusal.
        message = f"You already created this {repo_id.type} repo"
        answer = {"error": message, "url": f"{call.base_url}/{found[0].url_path}"}
        return json_response(answer, 409, {"X-Error-Code": "conflict", "X-Error-Message": message})
    files = {"README.md": _SPACE_CARD.format(title=repo_id.name)} if repo_id.type == "space" else {}
    call.store.create_repo(repo_id, user.name, is_private, files)
    return json_response({"url": url, "name": repo_id.full_name, "id": repo_id.full_name})


def delete(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    repo_id, _ = call.writable(_named_in(call, call.json_body()))
    call.store.delete_repo(repo_id)
    return json_response({})


def move(call: Call) -> Response:
    """POST /api/repos/move."""
    user = call.logged_in("Moving a repository")
    body = call.json_body()
    repo_type = parse_repo_type(body.get("type"))
    source, _ = call.writable(parse_repo_id(repo_type, str(body.get("fromRepo"))))
    target = parse_repo_id(repo_type, str(body.get("toRepo")))
    check_owner(target.owner)
    if not user.may_write(target):
        raise forbidden(f"{user.name} has no right to create {target.full_name}")
    call.store.move_repo(source, target)
    return json_response({"url": f"{call.base_url}/{target.url_path}"})


def settings(call: Call) -> Response:
    """PUT /api/models/OWNER/NAME/settings."""
    _, repo = call.writable(call.repo_id)
    body = call.json_body()
    changes: dict[str, Any] = {}
    if "visibility" in body or "private" in body:
        visibility = body.get("visibility", "private" if body.get("private") else "public")
        if visibility not in ("public", "private"):
            raise bad_request("visibility must be public or private.")
        changes["is_private"] = visibility == "private"
    if "gated" in body:
        if body["gated"] not in ("auto", "manual", False):
            raise bad_request('gated must be "auto", "manual" or false.')
        changes["gated"] = body["gated"]
    if changes:
        repo.change_settings(**changes)
    return json_response({"private": repo.settings.is_private, "gated": repo.settings.gated})


def info(call: Call) -> Response:
    """GET /api/models/OWNER/NAME and /api/models/OWNER/NAME/revision/REVISION."""
    repo_id, repo = call.repo()
    commit_id = repo.resolve(call.param("rev") if "rev" in call.request.path_params else "main")
    view = repo_view(repo_id, repo, call.store.blobs, commit_id, with_sizes=call.flag("blobs"))
    return json_response(_expanded(call, view))


def auth_check(call: Call) -> Response:
    """GET /api/models/OWNER/NAME/auth-check and .../auth-check/write."""
    repo_id, repo = call.repo()
    if call.path.endswith("/write"):
        call.writable(repo_id)
    elif repo.settings.gated and not (call.user and call.user.owns(repo_id)):
        raise gated(repo_id.full_name, call.user is not None)
    return json_response({})


def list_repos(call: Call) -> Response:
    """GET /api/models, /api/datasets and /api/spaces."""
    sort = call.query("sort", "createdAt")
    if sort not in _SORT_KEYS:
        raise bad_request(f"sort must be one of {', '.join(sorted(set(_SORT_KEYS.values())))}.")
    author, search = call.query("author").lower(), call.query("search").lower()
    wanted_tags = {
        tag for name in ("filter", "pipeline_tag", "library") for tag in call.request.query_params.getlist(name) if tag
    }
    views = []
    for repo_id, repo in call.store.all_repos(call.repo_type):
        is_wanted = author in ("", repo_id.owner.lower()) and search in repo_id.full_name.lower()
        if is_wanted and call.may_read(repo_id, repo) and _has_gate(call, repo):
            view = repo_view(repo_id, repo, call.store.blobs, repo.resolve("main"))
            if wanted_tags <= set(view["tags"]):
                views.append(view)
    views.sort(key=_sort_key(_SORT_KEYS[sort]), reverse=call.query("direction", "-1") != "1")
    return call.page(views, lambda view: _listed(call, view), default=MAX_LIMIT, largest=MAX_LIMIT)


def _sort_key(name: str) -> Callable[[dict[str, Any]], tuple[Any, str]]:
    return lambda view: (view[name], view["createdAt"])


def _named_in(call: Call, body: dict[str, Any]) -> RepoId:
    name, owner = body.get("name"), body.get("organization")
    if not isinstance(name, str) or not isinstance(owner, str | None):
        raise bad_request('The body needs "name", a text, and perhaps "organization".')
    if "/" in name and not owner:
        owner, _, name = name.partition("/")
    return RepoId(
        parse_repo_type(body.get("type")), check_owner(owner or call.logged_in("This").name), check_name(name)
    )


def _has_gate(call: Call, repo: Repo) -> bool:
    return "gated" not in call.request.query_params or call.flag("gated") == bool(repo.settings.gated)


def _listed(call: Call, view: dict[str, Any]) -> dict[str, Any]:
    if call.request.query_params.getlist("expand"):
        return _expanded(call, view)
    kept = {"cardData"} if call.flag("cardData") or call.flag("full") else set()
    kept |= {"config"} if call.flag("config") else set()
    kept |= {"sha", "lastModified", "siblings"} if call.flag("full") else set()
    return {name: value for name, value in view.items() if name not in _LIGHT or name in kept}


def _expanded(call: Call, view: dict[str, Any]) -> dict[str, Any]:
    names = call.request.query_params.getlist("expand") + call.request.query_params.getlist("expand[]")
    for name in names:
        if name not in _EXPANDABLE:
            raise bad_request(f'"expand" must be one of [{", ".join(_EXPANDABLE)}]')
    return {name: value for name, value in view.items() if name in ("_id", "id", "modelId", *names)} if names else view
