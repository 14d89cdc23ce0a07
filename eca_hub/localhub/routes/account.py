"""Who am I, and is this model card well formed: questions about no repository."""

from starlette.responses import PlainTextResponse, Response

from ..call import Call, json_response
from ..cards import problems_of_card
from ..errors import token_needed


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
