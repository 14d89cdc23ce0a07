"""What every route works with, and how a route gets hold of it. Knows nothing of what the routes do."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from eca_hub import EcaHubError
from eca_service.http.auth import Keys
from eca_service.http.body import BodyReader
from eca_service.http.security import check_admin
from eca_service.http.uploads import UploadLimits
from eca_service.inference.model import ServedModel
from eca_service.inference.types import ImageResult
from eca_service.metrics import Metrics
from eca_service.models.registry import Registry


@dataclass(frozen=True)
class House:
    """What the routes work with."""

    registry: Registry
    """The models."""
    bodies: BodyReader
    """Reads what callers send."""
    limits: UploadLimits
    """How much they may send."""
    keys: Keys
    """Who may send it."""
    metrics: Metrics
    """What is counted."""
    admin_keys: Keys
    """Who may change models; they may ask as well."""
    allowed_repos: tuple[str, ...]
    """Which repositories may be loaded while the service runs: ids, in which `*` stands for any letters."""

    @asynccontextmanager
    async def read(self, request: Request, model_id: str | None, *, max_bytes: int) -> AsyncIterator[bytes]:
        """Give the body of a request to a model, unless it can be refused unread.

        Raises:
            ModelNotLoaded: no such model runs.
            NotReady: it is still loading.
            InvalidRequest: no id was given and there are several models.
            Overloaded: the model has no seat, or the bodies of others fill the memory that is set aside for them.
            EcaHubError: the body is too large, too slow or compressed.
        """
        self.registry.find(model_id).batcher.check_capacity()
        async with self.bodies.read(request.headers, request.receive, max_bytes=max_bytes) as body:
            yield body

    def measure(self, model: ServedModel[Any, Any], outcomes: Sequence[ImageResult[Any] | EcaHubError]) -> None:
        """Count where the time of these pictures went."""
        for outcome in outcomes:
            if isinstance(outcome, ImageResult):
                model_id, metrics = model.info.model_id, self.metrics
                metrics.decode_seconds.observe(outcome.decode_ms / 1000, model_id)
                metrics.queue_seconds.observe(outcome.queue_ms / 1000, model_id)
                metrics.engine_seconds.observe(outcome.engine_ms / 1000, model_id)
                metrics.batch_size.observe(outcome.batch_size, model_id)


async def house_of(request: Request) -> House:
    """The house that this request came to. Async, because FastAPI runs other dependencies in threads, which run out."""
    house = request.app.state.house
    assert isinstance(house, House)
    return house


async def check_key(request: Request) -> None:
    """Refuse a caller without a key before anything of the request is read."""
    house = await house_of(request)
    if not house.admin_keys.open_for(request.scope["headers"]):
        house.keys.check(request.scope["headers"])


async def check_admin_key(request: Request) -> None:
    """Refuse a caller without an admin key before anything of the request is read."""
    house = await house_of(request)
    check_admin(request.scope["headers"], house.admin_keys, house.keys)


TheHouse = Annotated[House, Depends(house_of)]
