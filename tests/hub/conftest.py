"""A real local hub for all tests of this package, and a client cache of its own for each test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from eca_hub.hub.push import PushResult, push_folder
from tests.hub import ecanet
from tests.localhub.hub_process import Hub, running_hub

Save = Callable[[object], Path]


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


@pytest.fixture
def push(hub: Hub, package: Path, model_id: str) -> Callable[..., PushResult]:
    def publish(**options: Any) -> PushResult:
        return push_folder(package, model_id, **{"endpoint": hub.url, "token": hub.token, **options})

    return publish


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write what torch.save writes."""

    def save_content(content: object) -> Path:
        path = tmp_path / "checkpoint.pth.tar"
        torch.save(content, path)
        return path

    return save_content


@pytest.fixture(scope="module")
def eca_resnet18() -> nn.Module:
    return ecanet.make("resnet18", num_classes=10)
