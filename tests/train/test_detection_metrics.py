"""Mean average precision equals pycocotools' on the same predictions to 1e-6."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

from eca_hub.images.rle import encode_mask
from eca_hub.train.detection_metrics import FIGURES, AveragePrecision, DetectionLosses, evaluate_detections

pycocotools_coco = pytest.importorskip("pycocotools.coco")
pycocotools_eval = pytest.importorskip("pycocotools.cocoeval")

SIDE = 200


def random_case(seed: int, *, with_masks: bool, scores: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with crowds and images out of id order, and predictions near and far from it."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(100, 130)).tolist()
    truth: dict[str, Any] = {
        "images": [{"id": each, "width": SIDE, "height": SIDE} for each in ids],
        "annotations": [],
        "categories": [{"id": each, "name": str(each)} for each in (9, 2, 5, 40)],
    }
    predictions: list[dict[str, Any]] = []
    for image_id in ids[:-2]:
        for _ in range(rng.integers(0, 9)):
            size = float(rng.choice([6, 20, 60, 120]))
            box = [*rng.uniform(0, SIDE - size, 2), *rng.uniform(size / 2, size, 2)]
            category_id = int(rng.choice([9, 2, 5]))
            entry = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "iscrowd": int(rng.random() < 0.1),
                "segmentation": encode_mask(mask_of(box)),
            }
            entry["area"] = float(mask_of(box).sum()) if with_masks else box[2] * box[3]
            truth["annotations"].append(entry)
            for _ in range(rng.integers(0, 4)):
                near = [each + rng.normal(0, 0.08 * size) for each in box]
                near[2:] = [max(side, 2) for side in near[2:]]
                predictions.append(prediction(rng, image_id, category_id, near, scores, with_masks))
        for _ in range(rng.integers(0, 5)):
            far = [*rng.uniform(0, SIDE / 2, 2), *rng.uniform(4, 60, 2)]
            predictions.append(prediction(rng, image_id, int(rng.choice([9, 2, 5, 40])), far, scores, with_masks))
    order = rng.permutation(len(predictions))
    return truth, [predictions[index] for index in order]


def prediction(
    rng: np.random.Generator, image_id: int, category_id: int, box: list[float], scores: str, with_masks: bool
) -> dict[str, Any]:
    score = float(rng.choice([0.25, 0.5, 0.75])) if scores == "tied" else float(rng.random())
    detection = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
    return {**detection, "segmentation": encode_mask(mask_of(box))} if with_masks else detection


def mask_of(box: list[float]) -> np.ndarray:
    mask_HW = np.zeros((SIDE, SIDE), bool)
    x, y, w, h = (round(each) for each in box)
    mask_HW[max(y, 0) : max(y + h, 1), max(x, 0) : max(x + w, 1)] = True
    return mask_HW


def reference(truth: dict[str, Any], predictions: list[dict[str, Any]], iou_type: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = pycocotools_coco.COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        kept = copy.deepcopy(predictions)
        if iou_type == "segm":
            for each in kept:
                del each["bbox"]
        evaluation = pycocotools_eval.COCOeval(coco, coco.loadRes(kept), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("scores", ["tied", "distinct"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_figures_equal_those_of_pycocotools(iou_type: Any, scores: str, seed: int) -> None:
    truth, predictions = random_case(seed, with_masks=iou_type == "segm", scores=scores)
    evaluation = evaluate_detections(truth, predictions, iou_type)
    expected = reference(truth, predictions, iou_type)
    assert list(evaluation.figures.values()) == pytest.approx(expected.stats.tolist(), abs=1e-6)
    assert 0.05 < evaluation.figures["AP50"] < 0.95
    precision_TRK = expected.eval["precision"][:, :, :, 0, -1]
    assert evaluation.class_ap == pytest.approx(precision_TRK.mean((0, 1)).tolist(), abs=1e-6)
    assert evaluation.class_ap[-1] == -1


def test_perfect_predictions_give_1_and_none_give_0() -> None:
    truth, _ = random_case(3, with_masks=False, scores="distinct")
    perfect = [
        {"image_id": each["image_id"], "category_id": each["category_id"], "bbox": each["bbox"], "score": 0.9}
        for each in truth["annotations"]
        if not each["iscrowd"]
    ]
    assert evaluate_detections(truth, perfect).figures["AP"] == pytest.approx(1)
    assert evaluate_detections(truth, perfect).precision == pytest.approx([1] * 101)
    nothing = evaluate_detections(truth, [])
    assert set(nothing.figures.values()) == {0.0}
    assert nothing.class_ap == (0, 0, 0, -1)


def test_without_predictions_a_size_that_no_object_has_is_marked_as_with_wrong_ones() -> None:
    truth = {
        "images": [{"id": 1, "width": 99, "height": 99}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    wrong = [{"image_id": 1, "category_id": 1, "bbox": [50, 50, 9, 9], "score": 0.5}]
    assert evaluate_detections(truth, []).figures == evaluate_detections(truth, wrong).figures
    assert evaluate_detections(truth, []).figures["APM"] == -1


def test_evaluation_changes_nothing_of_what_it_is_given() -> None:
    truth, predictions = random_case(4, with_masks=True, scores="tied")
    before = copy.deepcopy((truth, predictions))
    evaluate_detections(truth, predictions, "segm")
    assert (truth, predictions) == before


def test_images_may_have_names_as_ids() -> None:
    truth, predictions = random_case(5, with_masks=False, scores="distinct")
    expected = evaluate_detections(truth, predictions).figures
    for each in truth["images"]:
        each["id"] = f"image {each['id']}"
    for each in [*truth["annotations"], *predictions]:
        each["image_id"] = f"image {each['image_id']}"
    assert evaluate_detections(truth, predictions).figures == pytest.approx(expected)


def test_an_image_that_two_processes_saw_counts_once_and_one_that_none_saw_not_at_all() -> None:
    truth, predictions = random_case(6, with_masks=False, scores="distinct")
    seen = {each["id"] for each in truth["images"][:20]}
    metric = AveragePrecision(["bbox"])
    metric.reset(truth)
    assert not metric.update_called
    for image_id in [*seen, *seen]:
        metric.update(image_id, [each for each in predictions if each["image_id"] == image_id])
    part = {
        "images": truth["images"][:20],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in seen],
        "categories": truth["categories"],
    }
    expected = evaluate_detections(part, [each for each in predictions if each["image_id"] in seen])
    figures = metric.compute()
    assert set(figures) == set(FIGURES[:6])
    assert float(figures["AP"]) == pytest.approx(expected.figures["AP"])


def test_losses_are_means_over_images() -> None:
    metric = DetectionLosses(["box", "mask"])
    metric.update({"box": torch.tensor(1.0), "mask": torch.tensor(3.0)}, 2)
    metric.update({"box": torch.tensor(4.0), "mask": torch.tensor(0.0)}, 1)
    losses = {name: float(value) for name, value in metric.compute().items()}
    assert losses == {"loss": 4.0, "box": 2.0, "mask": 2.0}
    assert metric.state_dict()["sums"].tolist() == [6, 6, 3]


def test_the_sums_of_losses_are_saved_and_are_no_buffer_that_ddp_would_overwrite() -> None:
    losses, restored = DetectionLosses(["a", "b"]), DetectionLosses(["a", "b"])
    losses.update({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}, 2)
    losses.update({"a": torch.tensor(4.0), "b": torch.tensor(0.0)}, 1)
    assert not list(losses.buffers())
    assert losses.state_dict().keys() == losses.summed("").keys() == {"sums"}
    restored.load_state_dict(losses.summed(""))
    assert restored.compute() == losses.compute() == {"loss": 4.0, "a": 2.0, "b": 2.0}
    assert losses.half().sums.dtype == torch.float64
    assert losses.to("meta").sums.is_meta
    restored.clear()
    assert not restored.update_called
