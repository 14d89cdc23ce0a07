"""What every route works with, and the dependencies that give it to a route."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from eca_hub import EcaHubError
from eca_service.errors import InvalidRequest
from eca_service.http.auth import ApiKeys, Headers, check_admin_key
from eca_service.http.body import BodyReader
from eca_service.http.uploads import UploadLimits, num_copies_of
from eca_service.inference.model import ServedModel
from eca_service.inference.types import ImageResult
from eca_service.metrics import Metrics
from eca_service.models.registry import Registry

if TYPE_CHECKING:
    from eca_service.tracing import Tracing


@dataclass(frozen=True)
class AppState:
    """What the routes work with."""

    registry: Registry
    """The models."""
    bodies: BodyReader
    """Reads request bodies."""
    limits: UploadLimits
    """How much a request may hold."""
    keys: ApiKeys
    """Keys for inference."""
    metrics: Metrics
    """Counters and histograms."""
    admin_keys: ApiKeys
    """Keys for changing models; they allow inference as well."""
    allowed_repos: tuple[str, ...]
    """Repositories that may be loaded while the service runs: ids, in which `*` stands for any letters."""
    tracing: "Tracing | None" = None
    """Makes OpenTelemetry spans; None without --otlp_endpoint."""

    @asynccontextmanager
    async def read_body(
        self, request: Request, model_id: str | None, content_type: str, *, commit: str | None = None
    ) -> AsyncIterator[bytearray]:
        """Read the body of a request for a model, unless it can be refused unread.

        Args:
            request: The request.
            model_id: Id of the model; None means the only one.
            content_type: How large the body may be, and how much memory it takes.
            commit: Commit of the model, if given.

        Raises:
            ModelNotLoaded: no loaded model has this id.
            NotReady: the model is still loading.
            InvalidRequest: no id was given and several models are loaded.
            Overloaded: too much is in flight for this model, or the bodies of all requests fill their memory.
            EcaHubError: the body is too large, too slow or compressed.
        """
        self.registry.find(model_id, commit).batcher.check_capacity()
        max_bytes, num_copies = self.limits.max_body_bytes(content_type), num_copies_of(content_type)
        bodies, headers, receive = self.bodies, request.headers, request.receive
        async with bodies.read(headers, receive, max_bytes=max_bytes, num_copies=num_copies) as body:
            yield body

    def check_api_key(self, headers: Headers) -> None:
        """Accept a request with a valid key, and every request when no key is required.

        Raises:
            Unauthorized: no key, more than one, or an unknown one.
        """
        if not (self.admin_keys and self.admin_keys.authenticates(headers)):
            self.keys.check(headers)

    def record_metrics(self, model: ServedModel[Any, Any], outcomes: Sequence[ImageResult[Any] | EcaHubError]) -> None:
        """Record where the time of these images went, in metrics and in the trace of the request."""
        metrics, model_id = self.metrics, model.model_id
        for outcome in outcomes:
            if isinstance(outcome, ImageResult):
                metrics.decode_seconds.labels(model_id).observe(outcome.decode_ms / 1000)
                metrics.queue_seconds.labels(model_id).observe(outcome.queue_ms / 1000)
                metrics.engine_seconds.labels(model_id).observe(outcome.engine_ms / 1000)
                metrics.batch_size.labels(model_id).observe(outcome.batch_size)
        if self.tracing is not None:
            self.tracing.record_images(model_id, (one for one in outcomes if isinstance(one, ImageResult)))


async def get_state(request: Request) -> AppState:
    """Return the state of the app. Async, because FastAPI runs other dependencies in a thread pool."""
    state = request.app.state.service
    assert isinstance(state, AppState)
    return state


async def require_api_key(request: Request) -> None:
    """Refuse a request without a valid key before anything else of it is read."""
    (await get_state(request)).check_api_key(request.scope["headers"])


async def reject_repeated_parameters(request: Request) -> None:
    """Refuse a query with a parameter that is given twice: which of its values counts would be a guess."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) < len(names):
        raise InvalidRequest("The query has a parameter twice.", hint="Give each parameter once.")


async def reject_parameters(request: Request) -> None:
    """Refuse a query: an option that is not known would be ignored."""
    if request.query_params:
        raise InvalidRequest("This route has no query parameters.", hint="Leave them out; see /docs.")


async def require_admin_key(request: Request) -> None:
    """Refuse a request without an admin key before anything else of it is read."""
    state = await get_state(request)
    check_admin_key(request.scope["headers"], state.admin_keys, state.keys)


StateDep = Annotated[AppState, Depends(get_state)]
