"""Detection: the objects in an image, in pixels of the image as it was sent, upright.

Shapes: N objects of an image, M values of the map of a mask.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from eca_service.errors import InvalidRequest
from eca_service.inference.tasks.task import Task
from eca_service.inference.types import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor

    from eca_hub import Detection, Detector, PreparedImage

MaskFormat = Literal["rle", "polygon", "none"]
"""How masks are written: COCO's run-length code, outlines, or not at all."""

_STRIDE_PX = 32
"""Detectors pad the images of a batch to a multiple of this."""


@dataclass(frozen=True)
class DetectedObject:
    """One object, ready to be written."""

    detection: "Detection"
    """The object."""
    mask: Any = None
    """`{"size", "counts"}`, a list of outlines, or None."""


@dataclass(frozen=True)
class ObjectDetection(Task[list[DetectedObject]]):
    """Find the objects, the most certain first."""

    name: ClassVar[str] = "detect"
    is_slow_to_postprocess: ClassVar[bool] = True

    min_score: float | None = None
    """Leave out objects with a lower score; None is the default of `eca_hub.Detector.predict`."""
    max_detections: int = 100
    """Objects to return at most."""
    masks: MaskFormat | None = None
    """How masks are written; None is `rle` for a network that finds masks."""

    def check(self, info: ModelInfo) -> None:
        """Raise InvalidRequest for a score that the network does not answer, or masks that it does not find."""
        if self.min_score is not None and not info.min_score <= self.min_score <= 1:
            raise InvalidRequest(f"min_score must be {info.min_score:g} to 1: this model returns nothing lower.")
        if self.masks in ("rle", "polygon") and not info.has_masks:
            raise InvalidRequest("This model finds boxes without masks.", hint="Leave masks out, or send masks=none.")

    @staticmethod
    def bucket(item: "PreparedImage") -> Hashable:
        """Return the size after padding: in a batch of another size the outputs would differ."""
        height, width = item.pixels.shape[1:]
        return -(-height // _STRIDE_PX), -(-width // _STRIDE_PX)

    @staticmethod
    def collate(items: "Sequence[PreparedImage]") -> "list[PreparedImage]":
        """Return a list: the network pads the images itself."""
        return list(items)

    @staticmethod
    def forward(network: "Detector", batch: "list[PreparedImage]") -> "list[Tensor]":
        """Find the objects of each image: (N, 6 + M) with box, score, class and the map of the mask in each row."""
        import torch

        outputs = []
        for prediction in network.detect(batch):
            columns = [prediction["boxes"], prediction["scores"][:, None], prediction["labels"][:, None]]
            if "masks" in prediction:
                columns.append(prediction["masks"].flatten(1))
            outputs.append(torch.cat(columns, dim=1))
        return outputs

    def postprocess(self, output: "Tensor", item: "PreparedImage", info: ModelInfo) -> list[DetectedObject]:
        """Bring boxes to pixels of the image and write the masks."""
        boxes_N4, scores_N, labels_N, masks_NM = output[:, :4], output[:, 4], output[:, 5], output[:, 6:]
        prediction = {"boxes": boxes_N4, "scores": scores_N, "labels": labels_N}
        if masks_NM.shape[1]:
            side = round(masks_NM.shape[1] ** 0.5)
            prediction["masks"] = masks_NM.reshape(-1, 1, side, side)
        detections = item.to_detections(prediction, info.labels, self.min_score, self.max_detections)
        return [DetectedObject(each, self._written(each)) for each in detections]

    def _written(self, detection: "Detection") -> Any:
        if detection.mask is None or self.masks == "none":
            return None
        return detection.mask.to_polygons() if self.masks == "polygon" else detection.mask.to_rle()
