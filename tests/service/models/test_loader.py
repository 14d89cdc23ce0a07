"""From a folder to a running model, on one device or several, with real networks."""

import asyncio
import os
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eca_hub
from eca_hub.models.build import build_model
from eca_service.errors import BadSetting, UnfitModel
from eca_service.http.server import join_daemon_threads
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification, Embedding, WorkItem
from eca_service.inference.types import ImageResult, ParityReport, RawPixels
from eca_service.models.loader import ModelLoader
from eca_service.models.source import ModelSource
from eca_service.optimize.optimize import OptimizedModel, optimize_model
from eca_service.settings import Settings
from tests.service.optimize.test_optimize import CONFIG, classifier

IMAGE = (Path(__file__).parents[3] / "service" / "eca_service" / "optimize" / "images" / "0.jpg").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "digits"
    eca_hub.save_pretrained(classifier().model, path, config=CONFIG)
    return str(path)


@asynccontextmanager
async def opened(folder: str, **settings: Any) -> AsyncIterator[ServedModel[torch.Tensor, torch.Tensor]]:
    """The model of a folder, until the block ends."""
    loader = ModelLoader(Settings.model_validate({"model": (folder,), "precision": "fp32"} | settings))
    try:
        model = await loader.open(ModelSource(folder))
        yield model
        await model.close()
    finally:
        loader.close()


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        ("{}", "{}/.cache/eca-hub/compiled"),
        ("{}/file", "the default"),
        ("relative", "the default"),
        (None, "the default"),
    ],
)
def test_compiled_networks_are_kept_where_the_user_has_a_home_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None, expected: str
) -> None:
    def find_no_user(uid: int) -> None:
        raise KeyError(uid)

    (tmp_path / "file").touch()
    monkeypatch.setattr("pwd.getpwuid", find_no_user)
    # Set and removed again, so that what the loader sets does not stay after the test.
    for name in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if home is not None:
        monkeypatch.setenv("HOME", home.format(tmp_path))
    ModelLoader(Settings(model=("folder",), compile=True))
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR", "the default") == expected.format(tmp_path)


@pytest.mark.parametrize(("num_engines", "expected"), [(2, 2), (4, 3)])
def test_a_single_image_uses_no_more_cores_than_there_are_engines(
    folder: str, monkeypatch: pytest.MonkeyPatch, num_engines: int, expected: int
) -> None:
    used: list[int] = []

    def record(classifier: eca_hub.Classifier, *args: Any, num_cores: int, **kwargs: Any) -> OptimizedModel:
        used.append(num_cores)
        return optimize_model(classifier, *args, **kwargs)

    monkeypatch.setattr("eca_service.models.loader.num_usable_cores", lambda: 3)
    monkeypatch.setattr("eca_service.models.classifiers.optimize_model", record)

    async def scene() -> None:
        async with opened(folder, device="cpu", num_engines=num_engines) as model:
            await model.optimize()

    asyncio.run(scene())
    assert used == [expected]


def test_raw_pixels_of_a_gray_model_give_the_scores_of_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = eca_hub.ImageConfig(32, 32, crop=1.0, in_chans=1)
    config = eca_hub.ModelConfig("resnet20", "eca", labels=tuple("0123456789"), image=image)
    gray = eca_hub.save_pretrained(build_model(config), tmp_path / "gray", config=config)
    expected = eca_hub.Classifier.from_pretrained(gray)
    pixels = expected.transform.resize_and_crop(expected.transform.decode(IMAGE))

    async def scene() -> None:
        async with opened(str(gray), num_engines=1) as model:
            assert model.info.num_channels == 1
            [outcome] = await model.run(Classification(10), [RawPixels(pixels.numpy().tobytes())])
        assert isinstance(outcome, ImageResult)
        assert {one.label: one.score for one in outcome.value} == pytest.approx(
            {one.label: one.score for one in expected.predict(IMAGE, top_k=10)}, abs=1e-5
        )

    asyncio.run(scene())


def test_each_device_has_a_copy_and_engines_of_its_own_and_all_of_them_are_used(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    from eca_service.inference import engine

    class Noted(engine.Engine):
        async def run(self, items: list[WorkItem]) -> Sequence[torch.Tensor]:
            used.append(self)
            return await super().run(items)

    monkeypatch.setattr(engine, "Engine", Noted)

    async def scene() -> None:
        async with opened(folder, device="cpu,cpu", num_engines=1, max_batch=2) as model:
            assert model.info.device == "cpu,cpu"
            outcomes = await model.run(Classification(3), [IMAGE] * 4)
        assert len(set(used)) == 2, "four images are shared between the two"
        expected = eca_hub.Classifier.from_pretrained(folder).predict(IMAGE, top_k=3)
        for outcome in outcomes:
            assert isinstance(outcome, ImageResult)
            assert [one.label for one in outcome.value] == [one.label for one in expected]
            assert outcome.value[0].score == pytest.approx(expected[0].score, abs=1e-5)

    asyncio.run(scene())


def test_an_embedding_is_what_the_last_layer_reads_and_has_norm_1_on_request(folder: str) -> None:
    async def scene() -> tuple[list[float], list[float], str]:
        async with opened(folder, num_engines=1) as model:
            assert model.info.tasks == ("classify", "embed")
            # In one batch: each image has its own task.
            [plain], [scaled], [named] = await asyncio.gather(
                model.run(Embedding(), [IMAGE]),
                model.run(Embedding(normalize=True), [IMAGE]),
                model.run(Classification(1), [IMAGE]),
            )
        assert isinstance(plain, ImageResult)
        assert isinstance(scaled, ImageResult)
        assert isinstance(named, ImageResult)
        return plain.value, scaled.value, named.value[0].label

    plain, scaled, label = asyncio.run(scene())
    original = eca_hub.Classifier.from_pretrained(folder)
    network: Any = original.model
    pixels = original.transform.resize_and_crop(original.transform.decode(IMAGE))
    with torch.inference_mode():
        features = network.forward_head(network.forward_features(original.transform.normalize(pixels[None])), True)[0]
    assert plain == pytest.approx(features.tolist(), abs=1e-4)
    assert scaled == pytest.approx((features / features.norm()).tolist(), abs=1e-4)
    assert network.get_classifier()(torch.tensor(plain)).argmax().item() == int(label.removeprefix("class "))


def test_by_default_a_model_runs_in_the_fastest_number_format_that_passes_the_parity_check(folder: str) -> None:
    async def scene() -> None:
        async with opened(folder, num_engines=1, precision=Settings(model=(folder,)).precision) as model:
            assert Settings(model=(folder,)).precision == "auto"
            await model.optimize()
            assert model.info.parity.same_top1 == 1.0
            assert model.info.parity.max_difference <= model.info.parity.allowed_difference

    asyncio.run(scene())


def test_a_network_that_fails_on_ordinary_images_is_a_typed_error(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Kernel size can't be greater than actual input size")

    monkeypatch.setattr("eca_hub.EvalTransform.normalize", fail)

    async def scene() -> None:
        async with opened(folder, num_engines=1):
            pass

    with pytest.raises(UnfitModel, match="does not run: RuntimeError"):
        asyncio.run(scene())


def test_a_network_serves_as_it_was_loaded_until_its_optimized_form_replaces_it_and_is_freed_then(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = threading.Event(), threading.Event()
    loaded: list[weakref.ref[nn.Module]] = []

    def wait(classifier: eca_hub.Classifier, *args: Any, **kwargs: Any) -> OptimizedModel:
        loaded.append(weakref.ref(classifier.model))
        begun.set()
        assert gate.wait(60)
        return optimize_model(classifier, *args, **kwargs)

    monkeypatch.setattr("eca_service.models.classifiers.optimize_model", wait)

    async def scene() -> None:
        async with opened(folder, num_engines=2) as model:

            async def label() -> str:
                [result] = await model.run(Classification(1), [IMAGE])
                assert isinstance(result, ImageResult)
                return result.value[0].label

            optimizing = asyncio.create_task(model.optimize())
            assert await asyncio.to_thread(begun.wait, 60)
            as_loaded = await asyncio.gather(*(label() for _ in range(8)))
            assert model.info.parity == ParityReport("float32", 1.0, 0.0, num_images=0)
            gate.set()
            while not optimizing.done():
                as_loaded.append(await label())
            await optimizing
            assert model.info.parity.num_images == 4
            assert set(as_loaded) == {await label()}
            [network] = loaded
            await asyncio.gather(*(label() for _ in range(8)))
            assert network() is None

    asyncio.run(scene())


def test_when_optimizing_fails_the_network_serves_as_it_was_loaded(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("eca_service.models.classifiers.optimize_model", fail)

    async def scene() -> None:
        async with opened(folder, num_engines=1) as model:
            await model.optimize()
            assert model.info.parity.num_images == 0
            [result] = await model.run(Classification(1), [IMAGE])
            assert isinstance(result, ImageResult)

    asyncio.run(scene())
    assert "optimizing" in caplog.text
    assert "it runs as it was loaded" in caplog.text


def test_a_model_that_is_closed_while_it_is_optimized_leaves_its_weights_to_the_thread_that_reads_them(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate, done = threading.Event(), threading.Event(), threading.Event()
    sizes: list[int] = []

    def wait(classifier: eca_hub.Classifier, *args: Any, **kwargs: Any) -> OptimizedModel:
        begun.set()
        assert gate.wait(60)
        sizes.extend(parameter.numel() for parameter in classifier.model.parameters())
        done.set()
        return optimize_model(classifier, *args, **kwargs)

    monkeypatch.setattr("eca_service.models.classifiers.optimize_model", wait)

    async def scene() -> None:
        async with opened(folder, num_engines=1) as model:
            optimizing = asyncio.create_task(model.optimize())
            assert await asyncio.to_thread(begun.wait, 60)
            optimizing.cancel()
        gate.set()
        assert await asyncio.to_thread(done.wait, 60)

    asyncio.run(scene())
    join_daemon_threads(60)
    assert sizes
    assert all(sizes)


def test_a_number_format_that_the_processor_does_not_have_is_refused_before_the_network_serves(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_service.optimize.optimize._supports", lambda name: False)

    async def scene() -> None:
        async with opened(folder, precision="fp16"):
            pass

    with pytest.raises(BadSetting, match="does not compute in fp16"):
        asyncio.run(scene())


def test_a_package_whose_finite_weights_give_no_finite_scores_is_refused_before_it_serves(
    damaged_package: Path,
) -> None:
    async def scene() -> None:
        async with opened(str(damaged_package), num_engines=1):
            pass

    with pytest.raises(UnfitModel, match="gives no finite scores for ordinary images: its weights are damaged"):
        asyncio.run(scene())


def test_each_engine_of_a_lost_device_asks_for_the_end_and_the_process_is_signalled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))
    loader = ModelLoader(Settings(model=("acme/a",)))
    loader.end_process()
    loader.end_process()
    assert signals == [signal.SIGTERM], "a second signal would cut the drain short"
    draining = ModelLoader(Settings(model=("acme/a",)))
    draining.is_draining = lambda: True
    draining.end_process()
    assert signals == [signal.SIGTERM]


def test_a_device_that_is_not_there_is_named(folder: str) -> None:
    async def scene() -> None:
        async with opened(folder, device="cpu,cuda:99"):
            pass

    with pytest.raises(BadSetting, match="There is no cuda:99 on this machine"):
        asyncio.run(scene())


@pytest.mark.parametrize("device", ["quantum", "cpu,", "cuda:x", "cpu,auto", ""])
def test_a_device_that_cannot_be_is_refused_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(BadSetting, match="--device must be auto, cpu, cuda"):
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
