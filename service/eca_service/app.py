"""The application: settings and models in, an ASGI app out.

Knows how the parts fit together; nothing of sockets, signals or command lines.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from eca_service.api import health as probes
from eca_service.api import models as model_routes
from eca_service.api import open_inference as v2_routes
from eca_service.api import v1 as routes
from eca_service.http.auth import Keys
from eca_service.http.body import BodyReader
from eca_service.http.dependencies import House
from eca_service.http.middleware import Envelope
from eca_service.http.responses import add_error_handlers
from eca_service.http.shortcut import Shortcut
from eca_service.http.uploads import UploadLimits
from eca_service.metrics import Metrics
from eca_service.models.registry import ModelSource, Registry
from eca_service.models.revision_watcher import FindCommit, RevisionWatcher, find_commit_on_hub
from eca_service.settings import Settings


def create_app(
    settings: Settings,
    registry: Registry,
    keys: Keys,
    admin_keys: Keys = Keys(),
    *,
    find_commit: FindCommit = find_commit_on_hub,
    hub: ASGIApp | None = None,
) -> FastAPI:
    """Build the app. It starts to load the models when it starts, and answers meanwhile.

    Args:
        settings: How the service runs.
        registry: The models, none of them loaded.
        keys: What callers must send; none lets everybody in.
        admin_keys: What callers must send to change models; none lets nobody.
        find_commit: Where a branch stands, for `watch`.
        hub: What answers under /hub; nothing does when none is given.
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
        admin_keys,
        (*(ModelSource.parse(text).id_or_folder for text in settings.model), *settings.repos_to_allow),
    )
    app.state.watcher = RevisionWatcher(registry, find_commit, period_s=settings.watch) if settings.watch else None
    app.include_router(routes.router)
    app.include_router(model_routes.router)
    app.include_router(v2_routes.open_router)
    app.include_router(v2_routes.router)
    app.include_router(probes.router)
    if hub is not None:
        app.mount("/hub", hub)
    app.add_middleware(Shortcut)
    app.add_middleware(Envelope, metrics=metrics, registry=registry)
    add_error_handlers(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    registry = app.state.house.registry
    tasks = [asyncio.create_task(registry.load_all())]
    if app.state.watcher is not None:
        tasks.append(asyncio.create_task(app.state.watcher.watch()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await registry.close()


def _bytes(mib: float) -> int:
    return int(mib * 2**20)
