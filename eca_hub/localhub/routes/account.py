"""Who am I, and is this model card well formed: questions about no repository."""

from starlette.responses import PlainTextResponse, Response

from eca_hub.localhub.card_metadata import problems_of_card
from eca_hub.localhub.context import Call, json_response
from eca_hub.localhub.errors import token_needed
from eca_hub.localhub.serializers import storage_view
from eca_hub.localhub.validation import REPO_TYPES

REPOSITORIES_PER_PAGE = 1_000


def whoami(call: Call) -> Response:
    """GET /api/whoami-v2."""
    if call.user is None:
        raise token_needed("whoami")
    user = call.user
    orgs = [
        {"type": "org", "name": name, "fullname": fullname, "roleInOrg": "write"}
        for name, fullname in user.orgs.items()
    ]
    role = "read" if user.role == "read" else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "local hub", "role": role}}
    answer = {"type": "user", "id": user.name, "name": user.name, "fullname": user.fullname or user.name}
    return json_response({**answer, "email": None, "isPro": False, "orgs": orgs, "auth": auth})


def repositories(call: Call) -> Response:
    """GET /api/settings/repositories and /api/organizations/OWNER/settings/repositories: what is the caller's own."""
    user = call.logged_in("Listing one's repositories")
    owner = call.param("owner").lower() if "owner" in call.request.path_params else None
    views = []
    for repo_type in REPO_TYPES:
        for repo_id, repo in call.store.all_repos(repo_type):
            if user.owns(repo_id) and owner in (None, repo_id.owner.lower()):
                views.append(storage_view(repo_id, repo))
    total_bytes = sum(view["storage"] for view in views)
    answer = [view | {"storagePercent": 100 * view["storage"] / (total_bytes or 1)} for view in views]
    return call.page(answer, lambda view: view, REPOSITORIES_PER_PAGE, REPOSITORIES_PER_PAGE)


def validate_yaml(call: Call) -> Response:
    """POST /api/validate-yaml."""
    content = call.json_body().get("content")
    errors, warnings = problems_of_card(content if isinstance(content, str) else "")
    # RepoCard.validate() asks for text and shows it as it comes.
    if "text/plain" in call.request.headers.get("accept", ""):
        lines = [f"- Error: {text}" for text in errors] + [f"- Warning: {text}" for text in warnings]
        return PlainTextResponse("\n".join(lines), 400 if errors else 200)
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_response(answer, 400 if errors else 200)
