"""/v1/models: listing, loading and unloading models."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from eca_hub.errors import ChecksumMismatch, RepoNotFound
from eca_service.api.schemas import ModelResponse, ModelsResponse
from eca_service.app import create_app
from eca_service.errors import BadSetting
from eca_service.http.auth import ApiKeys
from eca_service.inference.model import ServedModel
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.settings import Settings
from tests.service.app_fixtures import refusal
from tests.service.fakes import REVISION, fake_model

ADMIN = {"authorization": "Bearer SENTINEL-admin"}
USER = {"authorization": "Bearer SENTINEL-user"}
ERRORS = {
    "acme/absent": RepoNotFound("no such repository"),
    "acme/torn": ChecksumMismatch("other bytes"),
    "acme/odd": RuntimeError("SENTINEL-inside"),
    "acme/half": BadSetting("--precision fp16 does not run on this processor."),
}


def app_with(
    *,
    keys: tuple[str, ...] = ("SENTINEL-user",),
    admin_keys: tuple[str, ...] = ("SENTINEL-admin",),
    models: tuple[str, ...] = ("acme/digits",),
) -> FastAPI:
    async def open_fake(source: ModelSource) -> ServedModel[Any, Any]:
        if source.id_or_folder in ERRORS:
            raise ERRORS[source.id_or_folder]
        return fake_model(model_id=source.id_or_folder, revision=source.revision or REVISION)

    settings = Settings(model=models, allow_repos="acme/*, other/one", allowed_hosts="testserver")
    return create_app(
        settings, Registry([*map(ModelSource.parse, models)], open_fake), ApiKeys(keys), ApiKeys(admin_keys)
    )


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app_with(), raise_server_exceptions=False) as client:
        yield client


def test_a_model_is_loaded_and_unloaded(client: TestClient) -> None:
    loaded = client.post("/v1/models", json={"model": "acme/new"}, headers=ADMIN)
    assert loaded.status_code == 200
    ModelResponse.model_validate(loaded.json())
    assert loaded.json()["state"] == "ready"
    assert client.post("/v1/classify?model=acme/new", content=b"7", headers=USER).status_code == 200
    left = client.delete("/v1/models/acme/new", headers=ADMIN)
    assert left.status_code == 200
    ModelsResponse.model_validate(left.json())
    assert [model["id"] for model in left.json()["models"]] == ["acme/digits"]
    refusal(client.post("/v1/classify?model=acme/new", content=b"7", headers=USER), 404, "model_not_loaded")
    refusal(client.delete("/v1/models/acme/new", headers=ADMIN), 404, "model_not_loaded")
    refusal(client.delete("/v1/models/", headers=ADMIN), 404, "model_not_loaded")
    assert client.delete("/v1/models/acme/digits", headers=ADMIN).json() == {"models": []}
    assert refusal(client.get("/readyz"), 503, "not_ready")["message"] == "No model is loaded."


def test_another_revision_replaces_the_loaded_one(client: TestClient) -> None:
    revision = "b" * 40
    loaded = client.post("/v1/models", json={"model": "acme/digits", "revision": revision}, headers=ADMIN)
    assert loaded.json()["revision"] == revision
    assert client.post("/v1/classify", content=b"7", headers=ADMIN).json()["revision"] == revision


def test_an_admin_key_is_needed_before_anything_is_read(client: TestClient) -> None:
    for body in ({"model": "acme/new"}, {"nonsense": 1}):
        refusal(client.post("/v1/models", json=body), 401, "unauthorized")
        refusal(client.post("/v1/models", json=body, headers={"authorization": "Bearer x"}), 401, "unauthorized")
        refusal(client.post("/v1/models", json=body, headers=USER), 403, "forbidden")
    refusal(client.delete("/v1/models/acme/digits"), 401, "unauthorized")
    refusal(client.delete("/v1/models/acme/digits", headers=USER), 403, "forbidden")


def test_without_admin_keys_models_cannot_be_changed() -> None:
    with TestClient(app_with(keys=(), admin_keys=())) as client:
        refusal(client.post("/v1/models", json={"model": "acme/new"}, headers=ADMIN), 404, "not_found")
        refusal(client.delete("/v1/models/acme/digits", headers=ADMIN), 404, "not_found")
        assert client.get("/v1/models").status_code == 200


def test_an_admin_key_alone_does_not_require_keys_for_inference() -> None:
    with TestClient(app_with(keys=())) as client:
        assert client.post("/v1/classify", content=b"7").status_code == 200
        refusal(client.post("/v1/models", json={"model": "acme/new"}), 401, "unauthorized")


@pytest.mark.parametrize(
    ("model_id", "status", "code"),
    [
        ("acme/absent", 404, "repo_not_found"),
        ("acme/torn", 502, "checksum_mismatch"),
        ("acme/odd", 422, "unfit_model"),
        ("acme/half", 422, "unfit_model"),
        ("other/two", 403, "repo_not_allowed"),
        ("other/one.", 403, "repo_not_allowed"),
        ("../../etc/passwd", 422, "invalid_request"),
        ("/etc/passwd", 422, "invalid_request"),
        ("acme/..", 422, "invalid_request"),
        ("acme", 422, "invalid_request"),
        ("acme/a\n", 422, "invalid_request"),
        ("acme/a@v1", 422, "invalid_request"),
        ("acme\\a/b", 422, "invalid_request"),
        ("acme/\0", 422, "invalid_request"),
        ("a/" + "b" * 1000, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_loaded_is_refused_and_changes_nothing(
    client: TestClient, model_id: str, status: int, code: str
) -> None:
    response = client.post("/v1/models", json={"model": model_id}, headers=ADMIN)
    refusal(response, status, code)
    assert "passwd" not in response.text
    assert "SENTINEL" not in response.text
    assert [model["id"] for model in client.get("/v1/models", headers=USER).json()["models"]] == ["acme/digits"]
    assert client.get("/readyz").status_code == 200


def test_a_query_is_refused_where_there_are_no_parameters(client: TestClient) -> None:
    query = "?revision=v1"
    refusal(client.get(f"/v1/models{query}", headers=USER), 422, "invalid_request")
    refusal(client.post(f"/v1/models{query}", json={"model": "acme/new"}, headers=ADMIN), 422, "invalid_request")
    refusal(client.delete(f"/v1/models/acme/digits{query}", headers=ADMIN), 422, "invalid_request")
    refusal(client.post("/models/acme/digits?top_k=1", content=b"7", headers=USER), 422, "invalid_request")
    for path in ("/healthz", "/readyz", "/metrics"):
        refusal(client.get(f"{path}{query}", headers=USER), 422, "invalid_request")
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/acme/digits",
        "/v2/models/acme/digits/ready",
    ):
        response = client.get(f"{path}{query}", headers=USER)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    inference = client.post(f"/v2/models/acme/digits/infer{query}", json={}, headers=USER)
    assert (inference.status_code, inference.json()["code"]) == (422, "invalid_request")
    refusal(client.post(f"/v1/models{query}", json={"model": "acme/new"}, headers=USER), 403, "forbidden")
    assert [model["id"] for model in client.get("/v1/models", headers=USER).json()["models"]] == ["acme/digits"]


@pytest.mark.parametrize("revision", ["", "..", "a..b", "a..b/../c", "a/.b", "-x", "a b", "a\0", "x" * 300, 7])
def test_an_invalid_revision_is_refused(client: TestClient, revision: object) -> None:
    response = client.post("/v1/models", json={"model": "acme/new", "revision": revision}, headers=ADMIN)
    refusal(response, 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_json"),
        (b"{", 400, "bad_json"),
        (b"[]", 422, "invalid_request"),
        (b'{"model": "acme/new", "SENTINEL": 1}', 422, "invalid_request"),
        (b'{"model": "acme/' + b"x" * 60_000 + b'"}', 422, "invalid_request"),
        (b'{"model": "acme/' + b"x" * 70_000 + b'"}', 413, "too_large"),
    ],
)
def test_other_bodies_are_refused(client: TestClient, body: bytes, status: int, code: str) -> None:
    response = client.post("/v1/models", content=body, headers=ADMIN)
    refusal(response, status, code)
    assert "SENTINEL" not in response.text


def test_every_published_id_works_wherever_an_id_is_written() -> None:
    with TestClient(app_with(models=("acme/digits", f"acme/digits@{'b' * 40}"))) as client:
        listed = client.get("/v1/models", headers=USER).json()["models"]
        assert [model["id"] for model in listed] == ["acme/digits@main", f"acme/digits@{'b' * 40}"]
        for model in listed:
            model_id, commit = model["id"], model["revision"]
            assert client.post(f"/v1/classify?model={model_id}", content=b"7", headers=USER).json()["model"] == model_id
            assert client.post(f"/models/{model_id}", content=b"7", headers=USER).status_code == 200
            for path in (model_id, f"{model_id}/versions/{commit}", f"acme/digits/versions/{commit}"):
                assert client.get(f"/v2/models/{path}/ready", headers=USER).json() == {"name": model_id, "ready": True}
                described = client.get(f"/v2/models/{path}", headers=USER).json()
                assert (described["name"], described["versions"]) == (model_id, [commit])
        hint = refusal(client.delete("/v1/models/acme/digits", headers=ADMIN), 422, "invalid_request")["hint"]
        assert hint == f"Its ids are {listed[0]['id']}, {listed[1]['id']}."
        added = client.post("/v1/models", json={"model": "acme/digits", "revision": "c" * 40}, headers=ADMIN)
        assert added.json()["id"] == f"acme/digits@{'c' * 40}"
        for model in (*listed[1:], added.json()):
            assert client.delete(f"/v1/models/{model['id']}", headers=ADMIN).status_code == 200
        assert [model["id"] for model in client.get("/v1/models", headers=USER).json()["models"]] == ["acme/digits"]
