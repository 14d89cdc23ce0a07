"""Discussions and pull requests, as far as the stock client uses them."""

from typing import Any

from starlette.responses import Response

from eca_hub.localhub.auth import User
from eca_hub.localhub.context import Call, json_response
from eca_hub.localhub.discussions import Discussions
from eca_hub.localhub.errors import bad_request, forbidden
from eca_hub.localhub.repos import Repo
from eca_hub.localhub.validation import RepoId

PER_PAGE = 50


def list_discussions(call: Call) -> Response:
    """GET .../discussions."""
    repo_id, repo = call.repo()
    kind, status, author = call.query("type", "all"), call.query("status", "all"), call.query("author")
    wanted = [
        entry
        for entry in Discussions(repo).newest_first
        if (kind == "all" or entry["isPullRequest"] == (kind == "pull_request"))
        and (status == "all" or (entry["status"] == "open") == (status == "open"))
        and author in ("", entry["author"]["name"])
    ]
    start = call.number("p", 0, 10**6) * PER_PAGE
    page = [_view(repo_id, entry) for entry in wanted[start : start + PER_PAGE]]
    return json_response({"discussions": page, "count": len(wanted), "start": start, "numClosedDiscussions": 0})


def create(call: Call) -> Response:
    """POST .../discussions."""
    repo_id, repo, user = call.contributable()
    body = call.json_body()
    title, text = body.get("title"), body.get("description") or ""
    if not isinstance(title, str) or not isinstance(text, str):
        raise bad_request('The body needs "title", a text, and perhaps "description".')
    with repo.lock:
        discussions = Discussions(repo)
        number = discussions.next_number()
        base = "refs/heads/main" if body.get("pullRequest") is True else None
        if base:
            repo.point_ref(f"refs/pr/{number}", repo.resolve(base))
        entry = discussions.open(number, title, text, user.name, base)
    return json_response(_view(repo_id, entry))


def details(call: Call) -> Response:
    """GET .../discussions/NUMBER."""
    repo_id, repo = call.repo()
    entry = Discussions(repo).get(_number(call))
    view = {**_view(repo_id, entry), "events": entry["events"]}
    if entry["isPullRequest"]:
        view["changes"] = {"base": entry["base"], "mergeCommitId": entry.get("mergeCommitId")}
        view |= {"filesWithConflicts": [], "diff": ""}
    return json_response(view)


def comment(call: Call) -> Response:
    """POST .../discussions/NUMBER/comment."""
    _, repo, user = call.contributable()
    with repo.lock:
        event = Discussions(repo).add_comment(_number(call), user.name, _text(call, "comment"))
    return json_response({"newMessage": event})


def edit_comment(call: Call) -> Response:
    """POST .../discussions/NUMBER/comment/ID/edit."""
    _, repo, user = call.contributable()
    with repo.lock:
        event = Discussions(repo).edit_comment(_number(call), call.param("event"), user.name, _text(call, "content"))
    return json_response({"updatedComment": event})


def rename(call: Call) -> Response:
    """POST .../discussions/NUMBER/title."""
    repo, user = _own(call)
    title = _text(call, "title")
    with repo.lock:
        event = Discussions(repo).rename(_number(call), user.name, title)
    return json_response({"newTitle": event})


def change_status(call: Call) -> Response:
    """POST .../discussions/NUMBER/status."""
    repo, user = _own(call)
    status = call.json_body().get("status")
    if status not in ("open", "closed"):
        raise bad_request("status must be open or closed.")
    with repo.lock:
        event = Discussions(repo).change_status(_number(call), user.name, status)
    return json_response({"newStatus": event})


def merge(call: Call) -> Response:
    """POST .../discussions/NUMBER/merge."""
    _, repo = call.writable(call.repo_id)
    with repo.lock:
        Discussions(repo).merge(_number(call), call.logged_in("Merging").name)
    return json_response({})


def _own(call: Call) -> tuple[Repo, User]:
    repo_id, repo, user = call.contributable()
    entry = Discussions(repo).get(_number(call))
    if entry["author"]["name"] != user.name and not user.may_write(repo_id):
        raise forbidden(f"{user.name} may not change this discussion")
    return repo, user


def _number(call: Call) -> int:
    text = call.param("number")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise bad_request("A discussion is called by its number.")
    return int(text)


def _text(call: Call, key: str) -> str:
    text = call.json_body().get(key)
    if not isinstance(text, str):
        raise bad_request(f'The body needs "{key}", a text.')
    return text


def _view(repo_id: RepoId, entry: dict[str, Any]) -> dict[str, Any]:
    hidden = ("events", "base", "mergeCommitId")
    view = {key: value for key, value in entry.items() if key not in hidden}
    return {**view, "repo": {"name": repo_id.full_name, "type": repo_id.type}}
