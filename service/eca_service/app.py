"""Build the ASGI app: settings and models in, FastAPI app out."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp

from eca_service.api import detect, embed, health, huggingface, models, open_inference, page, v1
from eca_service.api.docs import ApiDescription
from eca_service.errors import BadSetting
from eca_service.http.auth import ApiKeys
from eca_service.http.body import BodyReader
from eca_service.http.dependencies import AppState
from eca_service.http.middleware import CrossOriginMiddleware, ErrorMiddleware, HostCheckMiddleware, RequestMiddleware
from eca_service.http.responses import add_error_handlers
from eca_service.http.uploads import UploadLimits
from eca_service.metrics import Metrics
from eca_service.models.loader import ModelLoader
from eca_service.models.registry import Registry
from eca_service.models.revision_watcher import FindCommit, RevisionWatcher, find_commit_on_hub, follows_a_branch
from eca_service.models.source import ModelSource
from eca_service.settings import Settings, split

if TYPE_CHECKING:
    from eca_service.tracing import Tracing

_logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    registry: Registry,
    keys: ApiKeys,
    admin_keys: ApiKeys = ApiKeys(),
    *,
    find_commit: FindCommit = find_commit_on_hub,
    hub: ASGIApp | None = None,
    tracing: "Tracing | None" = None,
) -> FastAPI:
    """Build the app. It loads the models when it starts, and responds to requests meanwhile.

    Args:
        settings: How the service runs.
        registry: The models, none of them loaded.
        keys: Keys for inference; without any, every request is accepted.
        admin_keys: Keys for changing models; without any, models cannot be changed.
        find_commit: Resolves a branch to a commit, for `revision_poll_s`.
        hub: App to mount at /hub.
        tracing: Makes OpenTelemetry spans, if given; closed with the app.
    """
    app = FastAPI(
        title="eca-hub",
        summary="Classify images and find objects in them.",
        lifespan=_lifespan,
        # These pages are ours, see eca_service.api.health.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.description = ApiDescription(app)
    bodies = BodyReader(
        max_total_bytes=_bytes(settings.max_bodies_mib),
        timeout_s=settings.body_timeout_s,
        deadline_s=settings.deadline_ms / 1000,
    )
    metrics = Metrics(lambda: health.measure(registry, bodies))
    app.state.service = AppState(
        registry,
        bodies,
        UploadLimits(
            max_image_bytes=_bytes(settings.max_image_mib),
            max_images=min(settings.max_request_images, settings.max_inflight_images),
            max_request_bytes=_bytes(settings.max_request_mib),
        ),
        keys,
        metrics,
        admin_keys,
        (*_repos_of(registry), *settings.repos_to_allow),
        tracing,
    )
    _warn_of_idle_settings(settings, registry, admin_keys)
    poll_s = settings.revision_poll_s
    app.state.watcher = RevisionWatcher(registry, find_commit, period_s=poll_s) if poll_s else None
    # First: FastAPI resolves dependencies and parameters anew for each request, which takes a third of the app's own
    # CPU time (0.46 against 0.31 ms a request without a model).
    app.router.routes.insert(0, v1.plain_classify_route)
    app.include_router(v1.router)
    app.include_router(detect.router)
    app.include_router(embed.router)
    app.include_router(huggingface.router)
    app.include_router(models.router)
    app.include_router(open_inference.open_router)
    app.include_router(open_inference.router)
    app.include_router(health.router)
    app.include_router(page.router)
    app.mount("/static", page.static_files)
    if hub is not None:
        app.mount("/hub", hub)
    # The last one added is the outermost.
    if (hosts := _allowed_hosts(settings, keys)) != ("*",):
        if settings.root_path and not settings.allowed_hosts:
            _logger.warning(
                "only the host names %s are accepted; where the proxy of --root_path passes on the client's Host "
                "header, add its name: --allowed_hosts NAME",
                ", ".join(dict.fromkeys(hosts)),
            )
        app.add_middleware(HostCheckMiddleware, allowed_hosts=hosts)
    app.add_middleware(ErrorMiddleware, refuse_early=partial(v1.refuse_early, app.state.service))
    if settings.cors_origins:
        app.add_middleware(
            CrossOriginMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-Request-Id",
                "traceparent",
                open_inference.LENGTH_HEADER,
            ],
            expose_headers=["X-Request-Id", "Server-Timing", "Retry-After", open_inference.LENGTH_HEADER],
        )
    app.add_middleware(
        RequestMiddleware, metrics=metrics, registry=registry, keeps_alive=settings.keep_alive_s > 0, tracing=tracing
    )
    add_error_handlers(app)
    return app


def open_app(
    settings: Settings,
    sources: Sequence[ModelSource],
    keys: ApiKeys,
    admin_keys: ApiKeys = ApiKeys(),
    *,
    hub: ASGIApp | None = None,
) -> tuple[FastAPI, ModelLoader]:
    """Build the app of this process with real models, before torch and Pillow are imported.

    Args:
        settings: How the service runs.
        sources: The models of the start.
        keys: Keys for inference.
        admin_keys: Keys for changing models.
        hub: App to mount at /hub.

    Returns:
        The app, and the loader to close after it.

    Raises:
        BadSetting: traces are asked for, and OpenTelemetry is not installed.
    """
    # Each engine has one thread: more threads than cores would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Pillow keeps blocks of 16 MiB: each thread that has ever decoded a large image would hold all of its memory.
    # Blocks beyond 32 MiB are returned to the system.
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
    loader = ModelLoader(settings)
    max_weights_bytes = _bytes(settings.max_weights_mib)
    registry = Registry(sources, loader.open, max_weights_bytes=max_weights_bytes, wait_s=settings.wait_for_models_s)
    loader.is_draining = lambda: registry.is_draining
    tracing = _open_tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    return create_app(settings, registry, keys, admin_keys, hub=hub, tracing=tracing), loader


def _open_tracing(endpoint: str) -> "Tracing":
    try:
        from eca_service.tracing import open_tracing
    except ImportError:
        raise BadSetting(
            "--otlp_endpoint needs OpenTelemetry, which is not installed.", hint="pip install 'eca-hub[otel]'"
        ) from None
    return open_tracing(endpoint)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    registry = app.state.service.registry
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
        if (tracing := app.state.service.tracing) is not None:
            await asyncio.to_thread(tracing.close)


def _repos_of(registry: Registry) -> Iterator[str]:
    """Yield the repositories that are served: other revisions of them may be loaded."""
    for entry in registry.entries:
        if not entry.source.folder_id:
            yield entry.source.id_or_folder


def _warn_of_idle_settings(settings: Settings, registry: Registry, admin_keys: ApiKeys) -> None:
    if settings.allow_repos and not admin_keys:
        _logger.warning("--allow_repos does nothing without admin keys: set ECA_ADMIN_KEYS")
    follows_any = any(follows_a_branch(entry.source) for entry in registry.entries)
    if settings.revision_poll_s and not (follows_any or admin_keys):
        _logger.warning("--revision_poll_s does nothing: no model follows a branch of a repository")


def _allowed_hosts(settings: Settings, keys: ApiKeys) -> tuple[str, ...]:
    """Return the host names that clients may use; any where a key or --insecure protects the service otherwise."""
    if keys or settings.insecure:
        hosts = split(settings.allowed_hosts) or ("*",)
    else:
        hosts = split(settings.allowed_hosts) or ("localhost", "127.0.0.1", "::1", settings.host)
    # In a Host header an IPv6 address has brackets.
    return tuple(f"[{host}]" if ":" in host and not host.startswith("[") else host for host in hosts)


def _bytes(mib: float) -> int:
    return int(mib * 2**20)
