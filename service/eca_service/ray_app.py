"""The service on Ray Serve: each replica is the whole app, with its own decoders, batcher and engines.

    serve run service/deploy/ray/eca-hub.yaml

One deployment, because an ingress that sends decoded images to engine replicas would move 150 kB an image between
processes and split the batches. Ray's proxy listens and chooses the replica; a replica admits, batches and refuses as
`eca-hub serve` does. What differs: Ray's proxy parses HTTP, so that the limits on headers and slow clients are its own;
`/metrics` shows one replica, whichever the proxy chooses; what was in a replica when its node died is sent to another
one if the proxies were started with `eca_service.ray_proxy`, and gets 500 otherwise.

Number of cores and GPUs, replicas and autoscaling are Serve's options of the deployment.
"""

import math
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eca_service.app import open_app
from eca_service.errors import BadSetting
from eca_service.http.auth import ApiKeys, check_bind_address
from eca_service.models.source import ModelSource, check_ids
from eca_service.settings import Settings, split

NAME = "eca-hub"
"""Name of the deployment."""
OF_THE_PROXY = frozenset(
    [
        "host", "port", "header_timeout_s", "write_timeout_s", "keep_alive_s", "drain_delay_s", "drain_timeout_s",
        "max_connections", "access_log", "log_format", "hub_root", "hub_users",
    ]
)  # fmt: skip
"""Settings that mean nothing here, because Ray listens, drains and logs."""

_RETRY_AFTER_S = 1.0


class Replica:
    """What Serve asks a replica beside requests."""

    app: FastAPI

    def check_health(self) -> None:
        """Raise when an engine does not answer; after three times in a row Serve replaces the replica."""
        registry = self.app.state.service.registry
        if not registry.is_ready:
            raise RuntimeError(f"not ready: {', '.join(registry.pending())}")


def read_settings(args: Mapping[str, Any]) -> Settings:
    """Read the settings from the `args` of a Serve config.

    Args:
        args: Settings of `eca-hub serve` by name; `model` is an id, ids separated by commas, or a list.

    Raises:
        BadSetting: a value that is not allowed, or a setting of the HTTP server, which is Ray's here.
    """
    if unused := OF_THE_PROXY & args.keys():
        raise BadSetting(
            f"{min(unused)} has no effect on Ray Serve, whose proxy listens for the service.",
            hint="Remove it from args; http_options of the Serve config has host and port.",
        )
    model = args.get("model", ())
    return Settings(**{**args, "model": split(model) if isinstance(model, str) else tuple(model)})


def build(args: Mapping[str, Any]) -> serve.Application:
    """Build the application; `import_path: eca_service.ray_app:build` in a Serve config.

    Args:
        args: As for `read_settings`.

    Raises:
        BadSetting: a setting is not allowed, or there is neither a key nor `insecure`.
    """
    return deployment_for(read_settings(args)).bind()


def deployment_for(settings: Settings) -> serve.Deployment:
    """Make the deployment of the service.

    Raises:
        BadSetting: there is neither a key nor `insecure`, or two models have one id.
    """
    check_ids([ModelSource.parse(text) for text in settings.model])
    _read_keys(settings)
    return deployment_of(lambda: _open_loaded_app(settings), settings.max_inflight_images)


def deployment_of(open_replica: Callable[[], FastAPI], max_inflight_images: int) -> serve.Deployment:
    """Make the deployment of any app that batches and refuses by itself.

    Args:
        open_replica: Called in each replica; returns the app.
        max_inflight_images: Beyond it the app responds with 429.
    """
    # Serve's default of 5 requests a replica would starve the batcher. Twice what the app admits, so that it is the app
    # that refuses, with its own 429; what the proxy would queue beyond that gets one as well.
    return serve.deployment(
        serve.ingress(open_replica)(Replica),
        name=NAME,
        max_ongoing_requests=2 * max_inflight_images,
        max_queued_requests=max_inflight_images,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=_RETRY_AFTER_S),
    )


def _open_loaded_app(settings: Settings) -> FastAPI:
    """Open the app in a replica; Serve sends requests to it when its lifespan has started."""
    resources = ray.get_runtime_context().get_assigned_resources()
    settings = _with_threads(settings, resources.get("CPU", 0.0), has_gpu="GPU" in resources)
    keys, admin_keys = _read_keys(settings)
    app, _ = open_app(settings, [ModelSource.parse(text) for text in settings.model], keys, admin_keys)
    start, registry = app.router.lifespan_context, app.state.service.registry

    @asynccontextmanager
    async def start_and_load(app: FastAPI) -> AsyncIterator[None]:
        lifespan: AbstractAsyncContextManager[Any] = start(app)
        async with lifespan:
            await registry.loaded.wait()
            if registry.failure is not None:
                raise registry.failure
            yield

    app.router.lifespan_context = start_and_load
    app.add_middleware(_ProxyRequestId)
    return app


class _ProxyRequestId:
    """Leaves X-Request-Id to Ray's proxy, which gives the id to the replica and adds the header to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remove the header of the app."""

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [one for one in message["headers"] if one[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without_id)


def _with_threads(settings: Settings, num_cpus: float, *, has_gpu: bool) -> Settings:
    """Use the cores that Ray has assigned to the replica, not all of the node."""
    num_threads = max(1, math.floor(num_cpus))
    return settings.model_copy(
        update={
            "num_decoders": settings.num_decoders or num_threads,
            "num_engines": settings.num_engines or (0 if has_gpu else num_threads),
        }
    )


def _read_keys(settings: Settings) -> tuple[ApiKeys, ApiKeys]:
    keys = ApiKeys.from_env(os.environ, settings.api_keys_file)
    # Serve's proxy listens on all addresses unless http_options says otherwise.
    check_bind_address("0.0.0.0", keys, insecure=settings.insecure)  # noqa: S104
    return keys, ApiKeys.from_env(os.environ, settings.admin_keys_file, "ECA_ADMIN_KEYS")
