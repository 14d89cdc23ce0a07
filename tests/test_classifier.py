"""`Classifier`: maps images to named scores."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eca_hub import Classifier, explain_image
from eca_hub.errors import InvalidConfig, InvalidPackage, NonFiniteScores, NotAnImage
from eca_hub.models.config import ProblemType
from tests.conftest import LABELS, make_image


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.from_pretrained(tiny_package)


def test_all_classes_come_with_probabilities_in_falling_order(classifier: Classifier) -> None:
    predictions = classifier.predict(make_image())
    assert {each.label for each in predictions} == set(LABELS)
    assert [each.label for each in predictions] == [LABELS[each.index] for each in predictions]
    assert sum(each.score for each in predictions) == pytest.approx(1)
    assert predictions == sorted(predictions, key=lambda each: -each.score)


def test_a_path_the_bytes_and_the_decoded_image_give_the_same_predictions(
    classifier: Classifier, tmp_path: Path
) -> None:
    data = make_image()
    path = tmp_path / "image.png"
    path.write_bytes(data)
    expected = classifier.predict(data)
    assert classifier.predict(path) == classifier.predict(str(path)) == expected
    assert classifier.predict(Image.open(io.BytesIO(data))) == expected


def test_a_list_gives_a_list_and_each_result_is_that_of_the_image_alone(classifier: Classifier) -> None:
    images = [make_image(), make_image(100, 20), make_image(mode="L")]
    together = classifier.predict(images, top_k=1)
    for [prediction], image in zip(together, images, strict=True):
        [alone] = classifier.predict(image, top_k=1)
        assert prediction.label == alone.label
        assert prediction.score == pytest.approx(alone.score, abs=1e-5)
    assert classifier.predict([]) == []


def test_a_long_list_runs_in_batches_and_reports_progress(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = classifier.probabilities

    def count(pixels_NCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels_NCHW))
        return forward(pixels_NCHW)

    monkeypatch.setattr(classifier, "probabilities", count)
    progress: list[tuple[int, int]] = []
    predictions = classifier.predict(
        [make_image()] * 7, batch_size=3, on_progress=lambda done, total: progress.append((done, total))
    )
    assert len(predictions) == 7
    assert sizes == [3, 3, 1]
    assert progress == [(3, 7), (6, 7), (7, 7)]
    with pytest.raises(InvalidConfig, match="batch_size is 0"):
        classifier.predict([make_image()], batch_size=0)


def test_top_k_bounds_how_many_classes_are_named(classifier: Classifier) -> None:
    assert len(classifier.predict(make_image(), top_k=2)) == 2
    assert len(classifier.predict(make_image(), top_k=100)) == 3
    with pytest.raises(InvalidConfig, match="top_k is 0"):
        classifier.predict(make_image(), top_k=0)


def test_a_bad_file_is_named(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(NotAnImage, match=r"missing\.png cannot be read"):
        classifier.predict(tmp_path / "missing.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(NotAnImage, match=r"empty\.png: The image is empty"):
        classifier.predict(tmp_path / "empty.png")


def test_the_revision_of_a_folder_is_the_hash_of_its_files(classifier: Classifier, tiny_package: Path) -> None:
    assert classifier.model_id == str(tiny_package)
    assert len(classifier.revision) == 40
    assert int(classifier.revision, 16)


def test_the_network_is_in_evaluation_mode(classifier: Classifier) -> None:
    assert not any(module.training for module in classifier.model.modules())
    assert not torch.is_inference_mode_enabled()


def test_a_score_below_the_smallest_is_left_out(classifier: Classifier) -> None:
    image = make_image()
    every = classifier.predict(image)
    kept = classifier.predict(image, min_score=every[1].score)
    assert kept == every[:2]
    assert classifier.predict([image], min_score=1.0) == [[]]
    with pytest.raises(InvalidConfig, match=r"min_score is 1\.5; it must be 0 to 1"):
        classifier.predict(image, min_score=1.5)


@pytest.mark.parametrize("value", ["3", None, 2.5, 0, True])
@pytest.mark.parametrize("option", ["top_k", "batch_size"])
def test_an_option_that_is_no_whole_number_is_refused(option: str, value: Any, classifier: Classifier) -> None:
    with pytest.raises(InvalidConfig, match=f"{option} is {value!r}; it must be a whole number, 1 or more"):
        classifier.predict(make_image(), **{option: value})


@pytest.mark.parametrize("value", ["0.5", None, float("nan")])
def test_a_smallest_score_that_is_no_number_is_refused(value: Any, classifier: Classifier) -> None:
    with pytest.raises(InvalidConfig, match=f"min_score is {value!r}; it must be 0 to 1"):
        classifier.predict(make_image(), min_score=value)


def test_a_folder_may_be_named_as_in_a_file_that_no_shell_reads(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_package.parent))
    for name in (f"~/{tiny_package.name}", tiny_package.as_uri(), f"local-dir:{tiny_package}", f"{tiny_package}/"):
        assert Classifier.from_pretrained(name).config.labels == tuple(LABELS)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", InvalidPackage),
        (None, InvalidPackage),
        (3, InvalidPackage),
        ("x" * 5000, InvalidConfig),
        ("a\0b", InvalidConfig),
        ("~no_such_user/model", InvalidConfig),
        ("~no\0user/model", InvalidConfig),
    ],
)
def test_a_name_that_no_model_can_have_is_refused(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Classifier.from_pretrained(name)


def test_a_revision_of_a_folder_is_refused(tiny_package: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"is a folder, which has no revisions, and revision 'main' is given"):
        Classifier.from_pretrained(tiny_package, revision="main")


def test_finite_weights_that_give_no_finite_scores_are_an_error_and_no_empty_prediction(damaged_package: Path) -> None:
    damaged = Classifier.from_pretrained(damaged_package)
    pixels_1CHW = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    sentence = "gives no finite scores for this image: its weights are damaged, or those of another architecture"
    for predict in (lambda: damaged.predict(make_image()), lambda: damaged.probabilities(pixels_1CHW)):
        with pytest.raises(NonFiniteScores, match=sentence):
            predict()
    with pytest.raises(NonFiniteScores, match=sentence):
        explain_image(damaged, make_image())


@pytest.mark.parametrize("activation", ["single_label_classification", "multi_label_classification"])
def test_an_overflow_of_the_logits_is_no_certain_prediction(activation: ProblemType, tiny_package: Path) -> None:
    classifier = Classifier.from_pretrained(tiny_package)
    classifier.config = dataclasses.replace(classifier.config, problem_type=activation)
    for parameter in classifier.model.parameters():
        parameter.data.fill_(1e38)
    with pytest.raises(NonFiniteScores, match="gives no finite scores"):
        classifier.predict(make_image())
