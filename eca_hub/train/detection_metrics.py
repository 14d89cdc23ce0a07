"""Mean average precision of boxes and masks by COCO's rule, computed by faster-coco-eval on COCO's own dicts.

A prediction is what a COCO results file has: `image_id`, `category_id`, `bbox` as x, y, width, height, `score`, and for
masks `segmentation` as run-length code.

Shapes: K classes, R recalls, T IoU thresholds.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor
from torchmetrics import Metric

IouType = Literal["bbox", "segm"]

FIGURES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")
"""COCO's twelve figures in its order: precision and recall, S, M and L for small, medium and large objects."""
_AREAS_PX2 = {"S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, math.inf)}
"""Least and largest area of an object of these sizes."""


@dataclass(frozen=True)
class Evaluation:
    """How predictions compare with the ground truth."""

    figures: Mapping[str, float]
    """The twelve figures, 0 to 1; -1 where the ground truth has no object of that size."""
    class_ap: tuple[float, ...]
    """AP of each class in the order of the categories; -1 for a class without an object."""
    class_ap50: tuple[float, ...]
    """AP50 of each class."""
    precision: tuple[float, ...]
    """(R,) precision at IoU 0.5 for the 101 recalls from 0 to 1, mean of the classes that occur."""


def evaluate_detections(
    ground_truth: Mapping[str, Any], predictions: Iterable[Mapping[str, Any]], iou_type: IouType = "bbox"
) -> Evaluation:
    """Compare predictions with the ground truth.

    Args:
        ground_truth: `images`, `annotations` and `categories` as COCO has them; image ids in any order.
        predictions: As a COCO results file has them.
        iou_type: `bbox` compares boxes, `segm` masks.
    """
    # The evaluation takes whole numbers as ids, and writes into what it is given.
    number_of = {each["id"]: number for number, each in enumerate(sorted_images(ground_truth), start=1)}
    truth = COCO(
        {
            "images": [{**each, "id": number_of[each["id"]]} for each in ground_truth["images"]],
            "annotations": [{**each, "image_id": number_of[each["image_id"]]} for each in ground_truth["annotations"]],
            "categories": [dict(each) for each in ground_truth["categories"]],
        }
    )
    kept = ("category_id", "score", "bbox" if iou_type == "bbox" else "segmentation")
    # With a box beside the mask, the size of the box would decide which objects are small.
    results = [{"image_id": number_of[each["image_id"]], **{k: each[k] for k in kept}} for each in predictions]
    category_ids = sorted(each["id"] for each in ground_truth["categories"])
    if not results:
        num_classes = len(category_ids)
        present = {each["category_id"] for each in ground_truth["annotations"] if not each.get("iscrowd")}
        none = tuple(0.0 if each in present else -1.0 for each in category_ids)
        areas = [each["area"] for each in ground_truth["annotations"] if not each.get("iscrowd")]
        figures = {
            name: 0.0 if any(low <= area <= high for area in areas) else -1.0
            for name in FIGURES
            for low, high in [_AREAS_PX2.get(name[2:], (0.0, math.inf))]
        }
        return Evaluation(figures, none, none[:num_classes], (0.0,) * 101)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iou_type, print_function=lambda *_: None)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (T, R, K, area ranges, limits of detections); the first area is all, the last limit 100.
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    occurs_K = precision_TRK[0, 0] > -1
    curve = precision_TRK[0][:, occurs_K].mean(1) if occurs_K.any() else np.zeros(precision_TRK.shape[1])
    return Evaluation(
        {name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)},
        tuple(precision_TRK.mean((0, 1)).tolist()),
        tuple(precision_TRK[0].mean(0).tolist()),
        tuple(curve.tolist()),
    )


def sorted_images(ground_truth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the images by id: equal scores of two images are ranked in this order."""
    images = list(ground_truth["images"])
    if all(isinstance(each["id"], int) for each in images):
        return sorted(images, key=lambda each: each["id"])
    return sorted(images, key=lambda each: str(each["id"]))


class DetectionLosses(Metric):
    """The mean of the loss and of its parts over the images of an epoch, over all processes.

    A state of torchmetrics and no buffer: before every forward, DDP overwrites the buffers of a process by those of
    rank 0.

    Args:
        parts: Names of the parts.
    """

    full_state_update = False

    def __init__(self, parts: Sequence[str]) -> None:
        super().__init__(compute_with_cache=False)
        self.parts = tuple(parts)
        self.sums: Tensor
        """Of each part over the images, the number of images last."""
        # MPS has no float64.
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("sums", torch.zeros(len(parts) + 1, dtype=dtype), "sum", persistent=True)

    @property
    def update_called(self) -> bool:
        """Whether an image was counted, here or before the run was resumed."""
        return bool(self.sums[-1] > 0)

    def clear(self) -> None:
        """Set the sums to zero, because another process holds those before the run was resumed."""
        self.reset()

    def update(self, losses: Mapping[str, Tensor], num_images: int) -> None:
        """Add the losses of a batch, which are means over its images."""
        parts = [losses[part].detach().to(self.sums.dtype) for part in self.parts]
        self.sums += torch.stack([*parts, torch.ones_like(parts[0])]) * num_images

    def compute(self) -> dict[str, Tensor]:
        """Return `loss`, the sum, and each part; each process must call it."""
        *sums, num_images = self.sums
        means = [each / num_images.clamp(min=1) for each in sums]
        return {
            "loss": torch.stack(means).sum().float(),
            **{n: m.float() for n, m in zip(self.parts, means, strict=True)},
        }

    def summed(self, prefix: str) -> dict[str, Tensor]:
        """Return the sums of all processes together; each process must call it.

        Args:
            prefix: Put before each name.
        """
        with self.sync_context():
            return {f"{prefix}sums": self.sums.clone()}

    def local_means(self) -> dict[str, float]:
        """Return the loss of this process so far."""
        return {"loss": float(self.sums[:-1].sum()) / max(float(self.sums[-1]), 1.0)}


class AveragePrecision:
    """Predictions of a split, gathered from all processes and evaluated once.

    Args:
        iou_types: `bbox`, and `segm` for a detector with masks.
    """

    def __init__(self, iou_types: Sequence[IouType]) -> None:
        self.iou_types = tuple(iou_types)
        self.evaluations: dict[IouType, Evaluation] = {}
        """What the last `compute` found."""
        self._ground_truth: Mapping[str, Any] | None = None
        self._predictions: dict[Any, list[dict[str, Any]]] = {}

    @property
    def update_called(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self._predictions)

    def reset(self, ground_truth: Mapping[str, Any] | None = None) -> None:
        """Start anew.

        Args:
            ground_truth: COCO's dict of the split; the one before when none is given.
        """
        self._ground_truth = self._ground_truth if ground_truth is None else ground_truth
        self._predictions = {}
        self.evaluations = {}

    def update(self, image_id: int | str, predictions: list[dict[str, Any]]) -> None:
        """Add the predictions of one image; an image that comes twice counts once."""
        self._predictions[image_id] = predictions

    def gather(self) -> dict[Any, list[dict[str, Any]]]:
        """Return the predictions of all processes by image; each process must call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self._predictions
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, self._predictions)
        return {image_id: predictions for share in shares for image_id, predictions in share.items()}

    def compute(self) -> dict[str, Tensor]:
        """Return AP, AP50, AP75, APS, APM and APL of boxes, and of masks with `mask_` before; each process calls it."""
        if not self.evaluations:
            gathered = self.gather()
            evaluated = {each["id"] for each in (self._ground_truth or {}).get("images", ())} & gathered.keys()
            truth = restrict(self._ground_truth or {"images": [], "annotations": [], "categories": []}, evaluated)
            predictions = [each for image_id in evaluated for each in gathered[image_id]]
            for iou_type in self.iou_types:
                self.evaluations[iou_type] = evaluate_detections(truth, predictions, iou_type)
        return {
            ("mask_" if iou_type == "segm" else "") + name: torch.tensor(evaluation.figures[name])
            for iou_type, evaluation in self.evaluations.items()
            for name in FIGURES[:6]
        }


def restrict(ground_truth: Mapping[str, Any], image_ids: set[Any]) -> dict[str, Any]:
    """Keep the ground truth of some images: with `limit_val_batches`, the others were not predicted."""
    return {
        "images": [each for each in ground_truth["images"] if each["id"] in image_ids],
        "annotations": [each for each in ground_truth["annotations"] if each["image_id"] in image_ids],
        "categories": ground_truth["categories"],
    }
