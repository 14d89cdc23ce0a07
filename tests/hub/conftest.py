"""A real local hub for the whole room, and a client cache of its own for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.localhub.hubserver import Hub, running_hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub") / "root") as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client reads its settings when it is imported, so they are set where it keeps them."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    """A copy that a test may change or damage."""
    return shutil.copytree(tiny_package, tmp_path / "package")


@pytest.fixture
def model_id(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"acme/{abs(hash(request.node.nodeid)):x}"
