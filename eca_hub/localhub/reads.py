"""Routes that read: users, repositories, references, history, trees, and the HTML pages."""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from eca_hub.localhub.card_metadata import body_of, validate_card
from eca_hub.localhub.commits import Commit
from eca_hub.localhub.context import RequestContext, json_response
from eca_hub.localhub.errors import bad_request, entry_not_found, token_required
from eca_hub.localhub.html import CSP, index_page, repo_page
from eca_hub.localhub.repo import Repo
from eca_hub.localhub.serializers import (
    card_text,
    last_commits,
    serialize_commit,
    serialize_entries,
    serialize_refs,
    serialize_repo,
    serialize_storage,
)
from eca_hub.localhub.validation import REPO_TYPES, RepoId, check_path

_log = logging.getLogger(__name__)

REPOS_PER_PAGE = 1_000
ENTRIES_PER_PAGE = 1_000
EXPANDED_ENTRIES_PER_PAGE = 50
MAX_ENTRIES_PER_PAGE = 10_000
MAX_EXPANDED_ENTRIES_PER_PAGE = 100
COMMITS_PER_PAGE = 1_000

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
# Filters of the Hub by what this hub does not know. Ignored, they would list repositories that do not match.
_UNKNOWN_FILTERS = (
    "apps",
    "datasets",
    "inference",
    "inference_provider",
    "linked",
    "models",
    "num_parameters",
)
# Left out of lists unless they are asked for.
_DETAILS = (
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


def whoami(context: RequestContext) -> Response:
    """GET /api/whoami-v2."""
    if context.user is None:
        raise token_required("whoami")
    user = context.user
    orgs = [
        {"type": "org", "name": name, "fullname": fullname, "roleInOrg": "write"}
        for name, fullname in user.orgs.items()
    ]
    auth = {"type": "access_token", "accessToken": {"displayName": "local hub", "role": user.role}}
    info = {"type": "user", "id": user.name, "name": user.name, "fullname": user.fullname or user.name}
    return json_response({**info, "email": None, "isPro": False, "orgs": orgs, "auth": auth})


def validate_yaml(context: RequestContext) -> Response:
    """POST /api/validate-yaml: whether the metadata of a card are valid YAML."""
    content = context.json_body().get("content")
    errors, warnings = validate_card(content if isinstance(content, str) else "")
    # RepoCard.validate() asks for text and prints it.
    if "text/plain" in context.request.headers.get("accept", ""):
        lines = [f"- Error: {text}" for text in errors] + [f"- Warning: {text}" for text in warnings]
        return PlainTextResponse("\n".join(lines), 400 if errors else 200)
    problems = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_response(problems, 400 if errors else 200)


def own_repos(context: RequestContext) -> Response:
    """GET /api/settings/repositories and /api/organizations/OWNER/settings/repositories: the user's repositories."""
    user = context.require_user("Listing your repositories")
    owner = context.param("owner").lower() if "owner" in context.request.path_params else None
    repos = []
    for repo_type in REPO_TYPES:
        for repo_id, repo in context.store.all_repos(repo_type):
            if user.owns(repo_id) and owner in (None, repo_id.owner.lower()):
                repos.append(serialize_storage(repo_id, repo))
    total_bytes = sum(info["storage"] for info in repos)
    items = [info | {"storagePercent": 100 * info["storage"] / (total_bytes or 1)} for info in repos]
    return context.paginate(items, list, REPOS_PER_PAGE, REPOS_PER_PAGE)


def list_repos(context: RequestContext) -> Response:
    """GET /api/models, /api/datasets and /api/spaces."""
    sort = context.query("sort", "createdAt")
    if sort not in _SORT_KEYS:
        raise bad_request(f"sort must be one of {', '.join(sorted(set(_SORT_KEYS.values())))}.")
    for name in _UNKNOWN_FILTERS:
        if name in context.request.query_params:
            raise bad_request(f"This hub cannot filter by {name}: use author, search, filter, pipeline_tag or gated.")
    author = context.query("author").lower()
    searches = [text.lower() for text in context.request.query_params.getlist("search")]
    tags = {
        tag
        for name in ("filter", "pipeline_tag", "library")
        for tag in context.request.query_params.getlist(name)
        if tag
    }
    repos = []
    for repo_id, repo in context.store.all_repos(context.repo_type):
        is_match = author in ("", repo_id.owner.lower()) and all(text in repo_id.full_name.lower() for text in searches)
        if is_match and context.can_read(repo_id, repo) and _matches_gated(context, repo):
            info = _serialize_row(context, repo_id, repo)
            if info is not None and tags <= set(info["tags"]):
                repos.append(info)
    repos.sort(key=_sort_key(_SORT_KEYS[sort]), reverse=context.query("direction", "-1") != "1")

    def serialize(page: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_list_item(context, info) for info in page]

    return context.paginate(repos, serialize, REPOS_PER_PAGE, REPOS_PER_PAGE)


def repo_info(context: RequestContext) -> Response:
    """GET /api/models/OWNER/NAME and /api/models/OWNER/NAME/revision/REVISION."""
    repo_id, repo = context.readable_repo()
    commit_id = repo.resolve(context.param("rev") if "rev" in context.request.path_params else "main")
    info = serialize_repo(repo_id, repo, context.store.blobs, commit_id, with_sizes=context.flag("blobs"))
    return json_response(_expand(context, info))


def auth_check(context: RequestContext) -> Response:
    """GET /api/models/OWNER/NAME/auth-check and .../auth-check/write."""
    repo_id, repo = context.readable_repo()
    if context.path.endswith("/write"):
        context.check_writable(repo_id)
    else:
        context.check_gate(repo_id, repo)
    return json_response({})


def list_refs(context: RequestContext) -> Response:
    """GET .../refs."""
    _, repo = context.readable_repo()
    return json_response(serialize_refs(repo.refs, with_pull_requests=context.flag("include_prs")))


def list_commits(context: RequestContext) -> Response:
    """GET .../commits/REVISION, newest first."""
    _, repo = context.readable_repo()
    query = context.request.query_params
    is_formatted = "formatted" in query.getlist("expand[]") + query.getlist("expand")
    start = context.number("cursor", 0, 10**9)
    # One more than a page shows whether there is a next one, without reading the whole history.
    commits = list(islice(repo.history(repo.resolve(context.param("rev"))), start + COMMITS_PER_PAGE + 1))

    def serialize(page: Sequence[tuple[str, Commit]]) -> list[dict[str, Any]]:
        return [serialize_commit(*item, is_formatted) for item in page]

    return context.paginate(commits, serialize, COMMITS_PER_PAGE, COMMITS_PER_PAGE)


def list_tree(context: RequestContext) -> Response:
    """GET .../tree/REVISION/FOLDER."""
    _, repo = context.readable_repo()
    commit_id = repo.resolve(context.param("rev"))
    commit = repo.commit(commit_id)
    folder = context.param("path").strip("/") if "path" in context.request.path_params else ""
    if folder and not commit.has_folder(check_path(folder)):
        raise entry_not_found(folder, commit_id)
    prefix = f"{folder}/" if folder else ""
    paths = sorted(path for path in {*commit.files, *commit.folders} if path.startswith(prefix))
    if not context.flag("recursive"):
        paths = [path for path in paths if "/" not in path.removeprefix(prefix)]

    def serialize(page: Sequence[str]) -> list[dict[str, Any]]:
        return list(serialize_entries(commit, page))

    def expand(page: Sequence[str]) -> list[dict[str, Any]]:
        commits = _last_commits_of_listing(repo, commit_id, tuple(paths))
        return [entry | {"lastCommit": commits[entry["path"]]} for entry in serialize(page)]

    if context.flag("expand"):
        return context.paginate(paths, expand, EXPANDED_ENTRIES_PER_PAGE, MAX_EXPANDED_ENTRIES_PER_PAGE)
    return context.paginate(paths, serialize, ENTRIES_PER_PAGE, MAX_ENTRIES_PER_PAGE)


def paths_info(context: RequestContext) -> Response:
    """POST .../paths-info/REVISION. Paths that do not exist are skipped."""
    _, repo = context.readable_repo()
    commit_id = repo.resolve(context.param("rev"))
    form = context.form_body()
    paths = list(dict.fromkeys(value.strip("/") for name, value in form if name == "paths"))
    is_expanded = ("expand", "true") in [(name, value.lower()) for name, value in form]
    entries = list(serialize_entries(repo.commit(commit_id), paths))
    if is_expanded:
        commits = last_commits(repo, commit_id, [entry["path"] for entry in entries])
        entries = [entry | {"lastCommit": commits[entry["path"]]} for entry in entries]
    return json_response(entries)


def show_index(context: RequestContext) -> Response:
    """GET /: the page with all repositories."""
    repos: list[tuple[str, str, dict[str, object]]] = []
    for repo_type in REPO_TYPES:
        for repo_id, repo in context.store.all_repos(repo_type):
            info = _serialize_row(context, repo_id, repo) if context.can_read(repo_id, repo) else None
            if info is not None:
                repos.append((repo_id.url_path, repo_type, info))
    repos.sort(key=lambda item: str(item[2]["lastModified"]), reverse=True)
    return _html(index_page(context.base_url, repos))


def show_repo(context: RequestContext) -> Response:
    """GET /OWNER/NAME, /OWNER/NAME/tree/REVISION and /OWNER/NAME/commit/ID: the page of a repository."""
    repo_id, repo = context.readable_repo()
    commit_id = repo.resolve(context.param("rev") if "rev" in context.request.path_params else "main")
    commit = repo.commit(commit_id)
    can_read_files = context.can_read_files(repo_id, repo)
    card = body_of(card_text(commit.files.get("README.md"), context.store.blobs)) if can_read_files else ""
    return _html(repo_page(context.base_url, repo_id, repo.refs, commit_id, commit, card))


@lru_cache(maxsize=4)
def _last_commits_of_listing(repo: Repo, commit_id: str, paths: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """For each path of a listing, the commit that last changed it: its pages are requested one after the other."""
    return last_commits(repo, commit_id, paths)


def _serialize_row(context: RequestContext, repo_id: RepoId, repo: Repo) -> dict[str, Any] | None:
    """Return the information of one repository for a list; None if that fails, which must not hide the others."""
    try:
        return serialize_repo(repo_id, repo, context.store.blobs, repo.resolve("main"))
    except Exception:
        _log.exception("%s is left out of a list", repo_id.full_name)
        return None


def _sort_key(name: str) -> Callable[[dict[str, Any]], tuple[Any, str]]:
    return lambda info: (info[name], info["createdAt"])


def _matches_gated(context: RequestContext, repo: Repo) -> bool:
    return "gated" not in context.request.query_params or context.flag("gated") == bool(repo.settings.gated)


def _list_item(context: RequestContext, info: dict[str, Any]) -> dict[str, Any]:
    if context.request.query_params.getlist("expand"):
        return _expand(context, info)
    fields = {"cardData"} if context.flag("cardData") or context.flag("full") else set()
    fields |= {"config"} if context.flag("config") else set()
    fields |= {"sha", "lastModified", "siblings"} if context.flag("full") else set()
    return {name: value for name, value in info.items() if name not in _DETAILS or name in fields}


def _expand(context: RequestContext, info: dict[str, Any]) -> dict[str, Any]:
    names = context.request.query_params.getlist("expand") + context.request.query_params.getlist("expand[]")
    for name in names:
        if name not in _EXPANDABLE:
            raise bad_request(f'"expand" must be one of [{", ".join(_EXPANDABLE)}]')
    return {name: value for name, value in info.items() if name in ("_id", "id", "modelId", *names)} if names else info


def _html(page: str) -> Response:
    return HTMLResponse(
        page.encode("utf-8", "replace"), headers={"Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff"}
    )
