"""Which files a revision has: the tree, and questions about single paths."""

from starlette.responses import Response

from eca_hub.localhub.context import Call, json_response
from eca_hub.localhub.errors import entry_not_found
from eca_hub.localhub.serializers import entry_views, last_commits
from eca_hub.localhub.validation import check_path

ENTRIES_PER_PAGE = 1_000
EXPANDED_ENTRIES_PER_PAGE = 50
MAX_ENTRIES_PER_PAGE = 10_000


def list_tree(call: Call) -> Response:
    """GET .../tree/REVISION/FOLDER."""
    _, repo = call.repo()
    commit_id = repo.resolve(call.param("rev"))
    commit = repo.commit(commit_id)
    folder = call.param("path").strip("/") if "path" in call.request.path_params else ""
    if folder and not commit.has_folder(check_path(folder)):
        raise entry_not_found(folder, commit_id)
    prefix = f"{folder}/" if folder else ""
    paths = sorted(path for path in {*commit.files, *commit.folders} if path.startswith(prefix))
    if not call.flag("recursive"):
        paths = [path for path in paths if "/" not in path.removeprefix(prefix)]
    page_length = EXPANDED_ENTRIES_PER_PAGE if call.flag("expand") else ENTRIES_PER_PAGE

    def view(path: str) -> dict[str, object]:
        entry = next(entry_views(commit, [path]))
        return entry | ({"lastCommit": last_commits(repo, commit_id, [path])[path]} if call.flag("expand") else {})

    return call.page(paths, view, page_length, MAX_ENTRIES_PER_PAGE)


def paths_info(call: Call) -> Response:
    """POST .../paths-info/REVISION. Paths that do not exist are left out of the answer."""
    _, repo = call.repo()
    commit_id = repo.resolve(call.param("rev"))
    form = call.form_body()
    paths = list(dict.fromkeys(value.strip("/") for name, value in form if name == "paths"))
    is_expanded = ("expand", "true") in [(name, value.lower()) for name, value in form]
    entries = list(entry_views(repo.commit(commit_id), paths))
    if is_expanded:
        commits = last_commits(repo, commit_id, [entry["path"] for entry in entries])
        entries = [entry | {"lastCommit": commits[entry["path"]]} for entry in entries]
    return json_response(entries)
