"""The app with fake models, over ASGI."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from eca_hub.errors import RepoNotFound
from eca_service.api.schemas import ErrorResponse
from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.inference.model import ServedModel
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.settings import Settings
from tests.service.fakes import REVISION, fake_model


def settings_with(*ids: str, **settings: Any) -> Settings:
    """Small limits, and the host name that starlette's TestClient sends."""
    small = {"max_image_mib": 0.01, "max_request_mib": 0.05, "max_request_images": 6, "allowed_hosts": "testserver"}
    return Settings.model_validate({"model": ids} | small | settings)


def app_with(
    *ids: str, keys: Sequence[str] = (), admin_keys: Sequence[str] = (), num_channels: int = 3, **settings: Any
) -> FastAPI:
    """The app with a fake model for each id; the commit of one that names a revision is made from it."""

    async def open_fake(source: ModelSource) -> ServedModel[Any, Any]:
        if source.id_or_folder == "acme/absent":
            raise RepoNotFound("no such repository")
        commit = source.revision.encode().hex().ljust(40, "0") if source.revision else REVISION
        return fake_model(model_id=source.id_or_folder, revision=commit, num_channels=num_channels)

    registry = Registry([ModelSource.parse(model_id) for model_id in ids], open_fake)
    return create_app(settings_with(*ids, **settings), registry, ApiKeys(keys), ApiKeys(admin_keys))


def wait_until_ready(client: TestClient, registry: Registry) -> None:
    """Wait in the loop of the app, which takes no processor time from the threads that load its models."""
    assert client.portal is not None
    client.portal.call(registry.loaded.wait)
    assert client.get("/readyz").status_code == 200


def refusal(response: Any, status: int, code: str) -> dict[str, str]:
    """Check that a response is an error in the one shape, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = ErrorResponse.model_validate(response.json()).error
    assert error.code == code
    assert error.message
    assert error.request_id == response.headers["x-request-id"]
    return response.json()["error"]  # type: ignore[no-any-return]
