"""From a folder to a running model, on one device or several, with real networks."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import eca_hub
from eca_service.errors import BadSetting
from eca_service.inference.model import ImageResult, ServedModel
from eca_service.models.loader import ModelLoader
from eca_service.models.registry import ModelSource
from eca_service.settings import Settings
from tests.service.optimize.test_optimize import CONFIG, classifier

PICTURE = (Path(__file__).parents[3] / "service" / "eca_service" / "optimize" / "images" / "0.jpg").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "digits"
    eca_hub.save_pretrained(classifier().model, CONFIG, path)
    return str(path)


@asynccontextmanager
async def opened(folder: str, **settings: Any) -> AsyncIterator[ServedModel[torch.Tensor, torch.Tensor]]:
    """The model of a folder, until the block ends."""
    loader = ModelLoader(Settings(model=(folder,), **settings))
    try:
        model = await loader.open(ModelSource(folder))
        yield model
        await model.close()
    finally:
        loader.close()


def test_each_device_has_a_copy_and_engines_of_its_own_and_all_of_them_are_used(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    from eca_service.inference import engine

    class Noted(engine.Engine):
        async def run(self, pixels: list[torch.Tensor]) -> object:  # type: ignore[override]
            used.append(self)
            return await super().run(pixels)

    monkeypatch.setattr(engine, "Engine", Noted)

    async def scene() -> None:
        async with opened(folder, device="cpu,cpu", num_engines=1, max_batch=2) as model:
            assert model.info.device == "cpu,cpu"
            outcomes = await model.classify([PICTURE] * 4, 3)
        assert len(set(used)) == 2, "four pictures are shared between the two"
        expected = eca_hub.Classifier.from_pretrained(folder).predict(PICTURE, top_k=3)
        for outcome in outcomes:
            assert isinstance(outcome, ImageResult)
            assert [one.label for one in outcome.predictions] == [one.label for one in expected]
            assert outcome.predictions[0].score == pytest.approx(expected[0].score, abs=1e-5)

    asyncio.run(scene())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads share the niceness of their process")
def test_large_pictures_are_decoded_by_a_thread_that_yields_to_others(folder: str) -> None:
    loader = ModelLoader(Settings(model=(folder,)))
    try:
        nice = loader._large_thread.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
        assert nice > os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        loader.close()


def test_a_device_that_is_not_there_is_named(folder: str) -> None:
    async def scene() -> None:
        async with opened(folder, device="cpu,cuda:99"):
            pass

    with pytest.raises(BadSetting, match="There is no cuda:99 on this machine"):
        asyncio.run(scene())


@pytest.mark.parametrize("device", ["quantum", "cpu,", "cuda:x", "cpu,auto", ""])
def test_a_device_that_cannot_be_is_refused_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(BadSetting, match="Set --device to auto, cpu, cuda"):
        Settings(model=("acme/a",), device=device)


def test_without_a_gpu_nothing_is_decoded_on_one() -> None:
    with pytest.raises(BadSetting, match="needs a GPU, and the networks run on cpu"):
        Settings(model=("acme/a",), device="cpu", decode_on="gpu")
    either = Settings(model=("acme/a",), decode_on="gpu")
    assert either.on("cuda").devices == ("cuda",)
    with pytest.raises(BadSetting, match="needs a GPU, and the networks run on cpu"):
        either.on("cpu")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cpu", ("cpu",)),
        ("cuda:0,1", ("cuda:0", "cuda:1")),
        ("cuda:2, cpu", ("cuda:2", "cpu")),
        ("cpu,cpu", ("cpu",) * 2),
    ],
)
def test_devices_are_named_one_after_the_other(text: str, names: tuple[str, ...]) -> None:
    assert Settings(model=("acme/a",), device=text).devices == names
