"""The one address that is asked all the time, answered without a router.

FastAPI looks a route up, collects its dependencies and validates its parameters anew for every request, which costs
more than all the rest of a request around its picture. A classification without options has nothing to look up, so it
goes straight to its function; whatever else comes goes the long way, and so do the documents about it.
"""

from fastapi import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from eca_hub import EcaHubError
from eca_service.api.schemas import ClassifyQuery
from eca_service.api.v1 import classify
from eca_service.http.dependencies import check_key, house_of
from eca_service.http.responses import error_answer, request_id_of

PATH = "/v1/classify"


class Shortcut:
    """ASGI middleware around the router, inside the envelope.

    Args:
        app: What answers everything else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # What the envelope calls the address in its metrics.
        self._route = Route(PATH, classify, methods=["POST"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or scope["query_string"]:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            await check_key(request)
            answer = await classify(request, await house_of(request), ClassifyQuery())
        except EcaHubError as error:
            answer = error_answer(error, request_id_of(request), PATH)
        await answer(scope, receive, send)
