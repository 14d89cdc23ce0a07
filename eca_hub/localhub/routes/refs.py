"""Branches, tags, the history, and squashing it."""

from itertools import islice
from typing import Literal

from starlette.responses import Response

from eca_hub.localhub.context import Call, json_response
from eca_hub.localhub.errors import bad_request, revision_not_found
from eca_hub.localhub.serializers import commit_view, refs_view

COMMITS_PER_PAGE = 1_000


def list_refs(call: Call) -> Response:
    """GET .../refs."""
    _, repo = call.repo()
    return json_response(refs_view(repo.refs, with_pulls=call.flag("include_prs")))


def list_commits(call: Call) -> Response:
    """GET .../commits/REVISION, newest first."""
    _, repo = call.repo()
    is_formatted = "formatted" in call.request.query_params.getlist("expand[]") + call.request.query_params.getlist(
        "expand"
    )
    start = call.number("cursor", 0, 10**9)
    # One more than a page tells whether there is a next one, without reading the whole history.
    commits = list(islice(repo.history(repo.resolve(call.param("rev"))), start + COMMITS_PER_PAGE + 1))
    return call.page(commits, lambda item: commit_view(*item, is_formatted), COMMITS_PER_PAGE, COMMITS_PER_PAGE)


def create_branch(call: Call) -> Response:
    """POST .../branch/NAME."""
    _, repo = call.writable(call.repo_id)
    start = call.json_body().get("startingPoint", "main")
    if not isinstance(start, str):
        raise bad_request("startingPoint must be a text.")
    repo.create_ref("branch", call.param("rev"), repo.resolve(start))
    return json_response({})


def create_tag(call: Call) -> Response:
    """POST .../tag/REVISION."""
    _, repo = call.writable(call.repo_id)
    tag = call.json_body().get("tag")
    if not isinstance(tag, str):
        raise bad_request('The body needs "tag", a text.')
    repo.create_ref("tag", tag, repo.resolve(call.param("rev")))
    return json_response({})


def delete_branch(call: Call) -> Response:
    """DELETE .../branch/NAME."""
    return _delete(call, "branch")


def delete_tag(call: Call) -> Response:
    """DELETE .../tag/NAME."""
    return _delete(call, "tag")


def squash(call: Call) -> Response:
    """POST .../super-squash/BRANCH."""
    repo_id, repo = call.writable(call.repo_id)
    branch = repo.find_ref(call.param("rev"))
    if branch is None or branch.startswith("refs/tags/"):
        raise revision_not_found(call.param("rev"))
    title, _, message = str(call.json_body().get("message") or f"Super-squash {call.param('rev')}").partition("\n")
    commit_id = repo.squash(branch, title, message.strip(), call.logged_in("Squashing").name)
    return json_response(
        {"commitOid": commit_id, "commitUrl": f"{call.base_url}/{repo_id.url_path}/commit/{commit_id}"}
    )


def _delete(call: Call, kind: Literal["branch", "tag"]) -> Response:
    _, repo = call.writable(call.repo_id)
    repo.delete_ref(kind, call.param("rev"))
    return json_response({})
