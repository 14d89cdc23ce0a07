"""Fixtures for tests against a real hub process and the stock client."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.localhub.hub_process import Hub, client_of, running_hub

ALICE, BOB, READER = "token-of-alice", "token-of-bob", "token-of-reader"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One hub for all tests that do not break it."""
    users: dict[str, object] = {
        "alice": {"token": ALICE, "orgs": {"acme": "Acme Research"}, "fullname": "Alice A."},
        "bob": BOB,
        "reader": {"token": READER, "role": "read"},
    }
    with running_hub(tmp_path_factory.mktemp("hub"), users=users) as running:
        yield running


@pytest.fixture(scope="package", autouse=True)
def client_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the stock client's caches and tokens out of the home folder."""
    before = dict(os.environ)
    home = str(tmp_path_factory.mktemp("hf_home"))
    os.environ |= {"HF_HOME": home, "HF_XET_CACHE": f"{home}/xet", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.pop("HF_TOKEN", None)
    yield
    os.environ.clear()
    os.environ |= before


@pytest.fixture
def http(hub: Hub) -> Iterator[httpx2.Client]:
    """Plain requests as alice."""
    with client_of(hub, ALICE) as client:
        yield client


@pytest.fixture
def repo_id(http: httpx2.Client, request: pytest.FixtureRequest) -> str:
    """An empty repository of alice's, named after the test."""
    name = str(abs(hash(request.node.nodeid)))
    http.post("/api/repos/create", json={"name": name, "organization": "acme"}).raise_for_status()
    return f"acme/{name}"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that the client takes for weights: partly compressible, several chunks long."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(400_000) + bytes(300_000) + os.urandom(400_000))
    return path
