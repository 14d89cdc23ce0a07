"""The application: settings and models in, an ASGI app out.

Knows how the parts fit together; nothing of sockets, signals or command lines.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import probes, routes
from service.answers import add_error_handlers
from service.body import BodyReader
from service.envelope import Envelope
from service.house import House
from service.metrics import Metrics
from service.registry import Registry
from service.security import Keys
from service.settings import Settings
from service.uploads import UploadLimits


def create_app(settings: Settings, registry: Registry, keys: Keys) -> FastAPI:
    """Build the app. It starts to load the models when it starts, and answers meanwhile.

    Args:
        settings: How the service runs.
        registry: The models, none of them loaded.
        keys: What callers must send; none lets everybody in.
    """
    app = FastAPI(
        title="eca-hub", summary="Name what is in a picture.", lifespan=_lifespan, docs_url=None, redoc_url=None
    )
    metrics = Metrics()
    app.state.house = House(
        registry,
        BodyReader(max_total_bytes=_bytes(settings.max_bodies_mib), timeout_s=settings.body_timeout_s),
        UploadLimits(
            max_image_bytes=_bytes(settings.max_image_mib),
            max_images=min(settings.max_request_images, settings.max_queue_images),
            max_request_bytes=_bytes(settings.max_request_mib),
        ),
        keys,
        metrics,
    )
    app.include_router(routes.router)
    app.include_router(probes.router)
    app.add_middleware(Envelope, metrics=metrics)
    add_error_handlers(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    registry = app.state.house.registry
    loading = asyncio.create_task(registry.load_all())
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await registry.close()


def _bytes(mib: float) -> int:
    return int(mib * 2**20)
