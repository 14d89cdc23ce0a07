"""From a folder to a running model, on one device or several, with real networks."""

import asyncio
from pathlib import Path

import pytest
import torch

import eca_hub
from service.errors import BadSetting
from service.loading import ModelLoader
from service.registry import ModelSource
from service.running import Classified
from service.settings import Settings
from tests.service.test_network import CONFIG, classifier

PICTURE = (Path(__file__).parents[2] / "service" / "pictures" / "0.jpg").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "digits"
    eca_hub.save_pretrained(classifier().model, CONFIG, path)
    return str(path)


def test_each_device_has_a_copy_and_engines_of_its_own_and_all_of_them_are_used(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    from service import engine

    class Noted(engine.Engine):
        async def run(self, pixels: list[torch.Tensor]) -> object:  # type: ignore[override]
            used.append(self)
            return await super().run(pixels)

    monkeypatch.setattr(engine, "Engine", Noted)
    settings = Settings(model=(folder,), device="cpu,cpu", num_engines=1, max_batch=2)

    async def scene() -> None:
        loader = ModelLoader(settings)
        model = await loader.open(ModelSource(folder))
        assert model.facts.device == "cpu,cpu"
        outcomes = await model.classify([PICTURE] * 4, 3)
        assert len(set(used)) == 2, "four pictures are shared between the two"
        expected = eca_hub.Classifier.from_pretrained(folder).predict(PICTURE, top_k=3)
        for outcome in outcomes:
            assert isinstance(outcome, Classified)
            assert [one.label for one in outcome.predictions] == [one.label for one in expected]
            assert outcome.predictions[0].score == pytest.approx(expected[0].score, abs=1e-5)
        await model.close()
        loader.close()

    asyncio.run(scene())


def test_a_device_that_is_not_there_is_named(folder: str) -> None:
    async def scene() -> None:
        loader = ModelLoader(Settings(model=(folder,), device="cpu,quantum"))
        try:
            with pytest.raises(BadSetting, match="'quantum' is not there"):
                await loader.open(ModelSource(folder))
        finally:
            loader.close()

    asyncio.run(scene())


def test_without_a_gpu_nothing_is_decoded_on_one(folder: str) -> None:
    async def scene() -> None:
        loader = ModelLoader(Settings(model=(folder,), device="cpu", decode_on="gpu"))
        try:
            with pytest.raises(BadSetting, match="needs a GPU, and the networks run on cpu"):
                await loader.open(ModelSource(folder))
        finally:
            loader.close()

    asyncio.run(scene())


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
