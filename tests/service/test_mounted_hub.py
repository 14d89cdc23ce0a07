"""The local hub mounted at /hub: the unmodified Hub client over real sockets, beside the service."""

import contextlib
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

import eca_hub
from eca_hub import EcaHubError
from eca_hub.localhub import Store
from eca_service.__main__ import main
from eca_service.http.auth import check_hub_bind_address
from tests.service.server_process import save_tiny_package, served


@pytest.mark.slow
def test_a_model_is_published_to_the_service_and_pulled_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    package = save_tiny_package(tmp_path / "package")
    users = tmp_path / "users.json"
    users.write_text(json.dumps({"acme": "token-of-acme"}))
    options = ("--hub_root", str(tmp_path / "hub"), "--hub_users", str(users))
    with served("--model", str(package), *options, ECA_API_KEYS="key-of-the-service") as service:
        service.wait_until_ready()
        endpoint = f"{service.url}/hub"
        published = eca_hub.push_to_hub(package, "acme/tiny", endpoint=endpoint, token="token-of-acme", tag="v1")
        assert published.url == f"{endpoint}/acme/tiny"
        api = HfApi(endpoint=endpoint)
        assert [model.id for model in api.list_models()] == ["acme/tiny"]
        pulled = eca_hub.Classifier.from_pretrained("acme/tiny", "v1", endpoint=endpoint)
        assert pulled.revision == published.revision
        # Keys of the service are not tokens of the hub.
        assert service.client.get("/v1/models").status_code == 401
        key = {"Authorization": "Bearer key-of-the-service"}
        assert service.client.get("/v1/models", headers=key).status_code == 200
        assert service.client.get("/hub/api/whoami-v2", headers=key).status_code == 401
        assert "acme/tiny" in service.client.get("/hub/").text
        assert service.stop() == 0
    with contextlib.closing(Store(tmp_path / "hub")) as store:
        assert store.folders()


@pytest.mark.slow
def test_without_hub_root_no_hub_is_served(tmp_path: Path) -> None:
    with served("--model", str(save_tiny_package(tmp_path / "package"))) as service:
        assert service.client.get("/hub/api/models").status_code == 404


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hub_users", "users.json"), "hub_users is set and hub_root is not"),
        (("--hub_root", "/dev/null/hub"), "cannot be written"),
        (("--hub_root", "hub", "--hub_users", "nothing.json"), "nothing.json cannot be read"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_served(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EcaHubError, match=message):
        main(["--model", "acme/digits", "--port", "0", *options])


def test_a_folder_that_is_not_a_hubs_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("tmp/thesis.tex", ".notes.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(EcaHubError, match="is not a hub's folder"):
        main(["--model", "acme/digits", "--port", "0", "--hub_root", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".notes.tmp", "thesis.tex", "tmp"]


def test_a_hub_beyond_loopback_requires_users() -> None:
    with pytest.raises(EcaHubError, match="which has no users file"):
        check_hub_bind_address("0.0.0.0", "hub", "")
    for host, root, users in (("0.0.0.0", "hub", "users.json"), ("127.0.0.1", "hub", ""), ("0.0.0.0", "", "")):
        check_hub_bind_address(host, root, users)
