"""Routes that change a repository as a whole: create, delete, move, settings, branches and tags."""

from typing import Any, Literal

from starlette.responses import Response

from eca_hub.localhub.context import RequestContext, json_response
from eca_hub.localhub.errors import HubHTTPError, bad_request, forbidden
from eca_hub.localhub.store import NameTaken
from eca_hub.localhub.validation import RepoId, check_name, check_owner, parse_repo_id, parse_repo_type

_SETTINGS = ("private", "visibility", "gated")


_SPACE_CARD = "---\ntitle: {title}\nsdk: static\n---\n"


def create_repo(context: RequestContext) -> Response:
    """POST /api/repos/create."""
    user = context.require_user("Creating a repository")
    body = context.json_body()
    repo_id = _repo_id_in_body(context, body)
    is_private = _read_visibility(body) or False
    if not user.can_write(repo_id):
        raise forbidden(f"You don't have the rights to create a {repo_id.type} under the namespace {repo_id.owner!r}")
    files = {"README.md": _SPACE_CARD.format(title=repo_id.name)} if repo_id.type == "space" else {}
    try:
        context.store.create_repo(repo_id, user.name, is_private, files)
    except NameTaken as error:
        # The client with exist_ok=True reads the URL from the error.
        content = {"error": error.message, "url": f"{context.base_url}/{error.repo_id.url_path}"}
        return json_response(content, 409, {"X-Error-Code": error.code, "X-Error-Message": error.message})
    url = f"{context.base_url}/{repo_id.url_path}"
    return json_response({"url": url, "name": repo_id.full_name, "id": repo_id.full_name})


def delete_repo(context: RequestContext) -> Response:
    """DELETE /api/repos/delete."""
    repo_id = _repo_id_in_body(context, context.json_body())
    # Rights are those on the current name, also where the repository is damaged: an old name may have another owner.
    repo_id = context.store.current_name(repo_id) or repo_id
    try:
        repo_id, *_ = context.check_writable(repo_id)
    except HubHTTPError as error:
        # A damaged repository can be deleted, too, by those who may create it.
        user = context.user
        if error.code != "repo_corrupt" or user is None or not user.can_write(repo_id):
            raise
    context.store.delete_repo(repo_id)
    return json_response({})


def move_repo(context: RequestContext) -> Response:
    """POST /api/repos/move."""
    user = context.require_user("Moving a repository")
    body = context.json_body()
    repo_type = parse_repo_type(body.get("type"))
    source, *_ = context.check_writable(parse_repo_id(repo_type, str(body.get("fromRepo"))))
    target = parse_repo_id(repo_type, str(body.get("toRepo")))
    check_owner(target.owner)
    if not user.can_write(target):
        raise forbidden(f"{user.name} has no right to create {target.full_name}")
    context.store.move_repo(source, target)
    return json_response({"url": f"{context.base_url}/{target.url_path}"})


def change_settings(context: RequestContext) -> Response:
    """PUT /api/models/OWNER/NAME/settings."""
    _, repo, _ = context.writable_repo()
    body = context.json_body()
    unknown = sorted(set(body) - set(_SETTINGS))
    if unknown:
        raise bad_request(f"There is no setting {unknown[0]!r}; the settings are {', '.join(_SETTINGS)}.")
    changes: dict[str, Any] = {}
    is_private = _read_visibility(body)
    if is_private is not None:
        changes["is_private"] = is_private
    if "gated" in body:
        if body["gated"] is not False and body["gated"] not in ("auto", "manual"):
            raise bad_request('gated must be "auto", "manual" or false.')
        changes["gated"] = body["gated"]
    if changes:
        repo.change_settings(**changes)
    return json_response({"private": repo.settings.is_private, "gated": repo.settings.gated})


def create_branch(context: RequestContext) -> Response:
    """POST .../branch/NAME."""
    _, repo, _ = context.writable_repo()
    start = context.json_body().get("startingPoint", "main")
    if not isinstance(start, str):
        raise bad_request("startingPoint must be a string.")
    repo.create_ref("branch", context.param("rev"), start)
    return json_response({})


def create_tag(context: RequestContext) -> Response:
    """POST .../tag/REVISION."""
    _, repo, _ = context.writable_repo()
    tag = context.json_body().get("tag")
    if not isinstance(tag, str):
        raise bad_request('The body needs "tag", a string.')
    repo.create_ref("tag", tag, context.param("rev"))
    return json_response({})


def delete_branch(context: RequestContext) -> Response:
    """DELETE .../branch/NAME."""
    return _delete_ref(context, "branch")


def delete_tag(context: RequestContext) -> Response:
    """DELETE .../tag/NAME."""
    return _delete_ref(context, "tag")


def _read_visibility(body: dict[str, Any]) -> bool | None:
    """Whether a body asks for a private repository; None if it says nothing.

    Anything unclear is refused: what was public once may have been downloaded.
    """
    private, visibility = body.get("private"), body.get("visibility")
    if not isinstance(private, bool | None):
        raise bad_request("private must be true or false.")
    if visibility not in ("public", "private", None):
        raise bad_request("visibility must be public or private.")
    if visibility is None:
        return private
    is_private = bool(visibility == "private")
    if private not in (None, is_private):
        raise bad_request("private and visibility contradict each other: give one of them.")
    return is_private


def _delete_ref(context: RequestContext, kind: Literal["branch", "tag"]) -> Response:
    _, repo, _ = context.writable_repo()
    repo.delete_ref(kind, context.param("rev"))
    return json_response({})


def _repo_id_in_body(context: RequestContext, body: dict[str, Any]) -> RepoId:
    name, owner = body.get("name"), body.get("organization")
    if not isinstance(name, str) or not isinstance(owner, str | None):
        raise bad_request('The body needs "name", a string, and perhaps "organization".')
    if "/" in name and not owner:
        owner, _, name = name.partition("/")
    owner = owner or context.require_user("Creating or deleting a repository").name
    return RepoId(parse_repo_type(body.get("type")), check_owner(owner), check_name(name))
