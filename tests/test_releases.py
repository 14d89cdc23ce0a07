"""The trained models in this package: complete, small, documented, and right on real photos."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from eca_hub import DEFAULT_RELEASE, Classifier, list_releases
from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.hub.card.edit import read_metadata
from eca_hub.hub.package import FILES
from eca_hub.hub.pull import is_local
from eca_hub.releases import release_folder

PHOTOS = Path(__file__).parent / "photos"
"""The first photo of every sixth class of the test split; license beside them."""
MAX_BYTES = 6 * 2**20


def folder_of(name: str) -> Path:
    folder = release_folder(name)
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.from_pretrained(DEFAULT_RELEASE)


@pytest.mark.parametrize("name", list_releases())
def test_a_release_is_a_complete_package_of_at_most_6_mib(name: str) -> None:
    assert {path.name for path in folder_of(name).iterdir()} == set(FILES)
    assert sum(path.stat().st_size for path in folder_of(name).iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("name", list_releases())
def test_large_kernels_are_in_half_precision_and_norms_in_float32(name: str) -> None:
    with safe_open(folder_of(name) / "model.safetensors", framework="numpy") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  it is no dictionary
        dtypes = [(each.get_dtype(), each.get_shape()) for each in slices]
    assert {dtype for dtype, shape in dtypes if math.prod(shape) > 2**16} <= {"F16"}
    assert {dtype for dtype, _ in dtypes} <= {"F16", "F32", "I64"}
    assert {dtype for dtype, shape in dtypes if len(shape) == 1} == {"F32"}


@pytest.mark.parametrize("name", list_releases())
def test_a_card_states_results_license_source_and_a_recipe_that_exists(name: str) -> None:
    card = (folder_of(name) / "README.md").read_bytes()
    [result] = read_metadata(card)["model-index"][0]["results"]
    assert {metric["type"] for metric in result["metrics"]} == {"accuracy", "balanced_accuracy"}
    text = card.decode()
    configs = re.findall(r"--config (\S+)", text)
    assert configs
    assert all(Path(config).is_file() for config in configs)
    if "photos" in name:
        assert "Copyright (c) 2019 Marcus Klasson" in text
        assert "EfficientNet-Lite0" in text
        assert "Apache-2.0" in text
    else:
        assert "states no license" in text
        assert "research only" in text


def test_a_release_loads_by_name_and_is_no_model_of_a_hub(classifier: Classifier) -> None:
    assert classifier.model_id == DEFAULT_RELEASE
    assert len(classifier.revision) == 40
    assert is_local(DEFAULT_RELEASE)


def test_real_photos_get_their_names(classifier: Classifier) -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    found = [predictions[0].label.lower() for predictions in classifier.predict(photos, top_k=1)]
    num_right = sum(label == photo.stem for label, photo in zip(found, photos, strict=True))
    assert (len(photos), num_right >= 4) == (6, True), found


def test_classifying_without_a_model_uses_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(PHOTOS / "apple.jpg"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == DEFAULT_RELEASE


def test_a_mistyped_release_gets_a_suggestion() -> None:
    with pytest.raises(InvalidConfig, match=r"Did you mean eca_resnet20\.cifar10\?"):
        Classifier.from_pretrained("eca_resnet20.cifar")


def test_the_list_of_models_shows_the_releases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--releases", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list_releases()
    assert (rows[DEFAULT_RELEASE]["classes"], rows[DEFAULT_RELEASE]["license"]) == (34, "apache-2.0")
    assert main(["models", "*.cifar10"]) == 0
    assert "eca_resnet20.cifar10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["acme/mine"], "No package is given."),
        (["runs/mine", "acme/mine", "--release", DEFAULT_RELEASE], "exclude each other"),
        (["acme/mine", "--release", "eca_resnet20.cifar"], "Did you mean 'eca_resnet20.cifar10'?"),
    ],
)
def test_a_mistake_in_a_push_is_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", *argv]) == 2
    assert sentence in capsys.readouterr().err


def test_listing_releases_imports_no_torch() -> None:
    code = "import sys, eca_hub; eca_hub.list_releases(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


DATA = {DEFAULT_RELEASE: "ECA_HUB_PHOTOS", "eca_resnet20.cifar10": "ECA_HUB_CIFAR10"}
"""Environment variables with the folders of the data sets, which are not part of the repository."""


def images_of(folder: str) -> Iterator[tuple[bytes, int]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    for batch in pq.ParquetFile(Path(folder) / "test.parquet").iter_batches(64):
        for row in batch.to_pylist():
            yield row["image"]["bytes"], row["label"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_releases())
def test_the_test_split_is_classified_with_the_accuracy_of_the_card(name: str) -> None:
    folder = os.environ.get(DATA[name])
    if folder is None:
        pytest.skip(f"{DATA[name]} names no folder")
    images, targets = zip(*images_of(folder), strict=True)
    found = Classifier.from_pretrained(name).predict(list(images), top_k=1)
    accuracy = sum(each[0].index == target for each, target in zip(found, targets, strict=True)) / len(targets)
    [result] = read_metadata((folder_of(name) / "README.md").read_bytes())["model-index"][0]["results"]
    stated = next(metric["value"] for metric in result["metrics"] if metric["type"] == "accuracy")
    assert accuracy == pytest.approx(stated, abs=1 / len(targets))


def test_the_release_recipes_train_the_named_networks() -> None:
    recipe = yaml.safe_load(Path("experiments/configs/releases/cifar10.yaml").read_text())
    assert (recipe["model"]["architecture"], recipe["model"]["attention"]) == ("resnet20", "eca")
