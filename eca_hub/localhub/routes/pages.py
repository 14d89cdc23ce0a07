"""The pages for people: all models, and one model with its card and files."""

from starlette.responses import HTMLResponse, Response

from eca_hub.localhub.card_metadata import body_of
from eca_hub.localhub.context import Call
from eca_hub.localhub.html import CSP, index_page, repo_page
from eca_hub.localhub.serializers import card_text, repo_view
from eca_hub.localhub.validation import RepoType


def index(call: Call) -> Response:
    """GET /."""
    shown: list[tuple[str, str, dict[str, object]]] = []
    kinds: tuple[RepoType, ...] = ("model", "dataset", "space")
    for repo_type in kinds:
        for repo_id, repo in call.store.all_repos(repo_type):
            if call.may_read(repo_id, repo):
                view = repo_view(repo_id, repo, call.store.blobs, repo.resolve("main"))
                shown.append((repo_id.url_path, repo_type, view))
    shown.sort(key=lambda item: str(item[2]["lastModified"]), reverse=True)
    return _html(index_page(call.base_url, shown))


def repo(call: Call) -> Response:
    """GET /OWNER/NAME, /OWNER/NAME/tree/REVISION and /OWNER/NAME/commit/ID."""
    repo_id, repo = call.repo()
    commit_id = repo.resolve(call.param("rev") if "rev" in call.request.path_params else "main")
    commit = repo.commit(commit_id)
    is_open = not repo.settings.gated or (call.user is not None and call.user.owns(repo_id))
    card = body_of(card_text(commit.files.get("README.md"), call.store.blobs)) if is_open else ""
    return _html(repo_page(call.base_url, repo_id, repo.refs, commit_id, commit, card))


def _html(page: str) -> Response:
    return HTMLResponse(
        page.encode("utf-8", "replace"), headers={"Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff"}
    )
