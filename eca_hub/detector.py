"""Load a detector and find the objects in images.

Shapes: N objects of an image, H height, W width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import Package
from eca_hub.hub.pretrained import read_detector
from eca_hub.hub.pull import pull
from eca_hub.images.decode import DecodedImage, ImageSource, load_image
from eca_hub.images.rle import encode_mask
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.detectors import build_detector, is_class_weight, paste_mask
from eca_hub.predictor import Predictor

AnyImage = TypeVar("AnyImage", bound=ImageSource)


@dataclasses.dataclass(frozen=True)
class Detection:
    """One object in an image."""

    label: str
    """Name of the class."""
    index: int
    """Index of the class."""
    score: float
    """Confidence, 0 to 1."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the upright image."""
    mask: np.ndarray | None = None
    """bool (H, W), the pixels of the object; None for a detector without masks."""


class Detector(Predictor):
    """A network that finds objects, with its labels and preprocessing.

    Args:
        model: The network, as `create_detector` makes it.
        config: Labels and preprocessing.
        model_id: Hub `owner/name`, or the path of the folder that it came from.
        revision: 40 hexadecimal digits: the commit, or for a folder the hash of its files.
    """

    config: DetectorConfig

    @staticmethod
    def read_package(package: Package) -> tuple[nn.Module, DetectorConfig]:
        """Make the network of a package, and its configuration."""
        model = read_detector(package)
        assert isinstance(model.config, DetectorConfig)
        return model, model.config

    @overload
    def predict(
        self,
        images: ImageSource,
        *,
        min_score: float = 0.5,
        max_detections: int = 100,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[Detection]: ...
    @overload
    def predict(
        self,
        images: list[AnyImage],
        *,
        min_score: float = 0.5,
        max_detections: int = 100,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[list[Detection]]: ...

    def predict(
        self,
        images: ImageSource | list[AnyImage],
        *,
        min_score: float = 0.5,
        max_detections: int = 100,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[Detection] | list[list[Detection]]:
        """Find the objects in an image, the most certain first; for several images, a list for each.

        Args:
            images: A path, the bytes of a file, a PIL image, or a list of these.
            min_score: Leave out what is less certain. The network itself leaves out scores below `config.min_score`.
            max_detections: How many objects to return for an image at most.
            on_progress: Called after each image with the number of images done and of all images.

        Raises:
            BadImage: an image is broken, too large, or not an image.
            InvalidConfig: min_score or max_detections is out of range.
        """
        if not self.config.min_score <= min_score <= 1:
            raise InvalidConfig(f"min_score is {min_score}; for this detector it is {self.config.min_score:g} to 1.")
        if max_detections < 1:
            raise InvalidConfig(f"max_detections is {max_detections}; it must be 1 or more.")
        if not isinstance(images, list | tuple):
            return self.predict([images], min_score=min_score, max_detections=max_detections, on_progress=on_progress)[
                0
            ]
        found: list[list[Detection]] = []
        for image in images:
            decoded = load_image(image, min_side_px=self.config.min_side_px)
            [answer] = self.detect_pixels([to_pixels(decoded)])
            found.append(self.to_detections(answer, decoded, min_score, max_detections))
            if on_progress is not None:
                on_progress(len(found), len(images))
        return found

    @torch.inference_mode()
    def detect_pixels(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Map uint8 images (3, H, W) to `boxes`, `labels`, `scores` and `masks` of each, on the CPU."""
        parameter = next(self.model.parameters())
        answers: list[dict[str, Tensor]] = self.model(
            [image.to(parameter.device, parameter.dtype) / 255 for image in images]
        )
        return [{name: tensor.cpu() for name, tensor in answer.items()} for answer in answers]

    def to_detections(
        self, answer: dict[str, Tensor], image: DecodedImage, min_score: float, max_detections: int
    ) -> list[Detection]:
        """Turn the answer for one image into detections in pixels of the full image."""
        boxes_N4 = to_full_size(answer["boxes"].float(), image)
        width, height = image.full_size
        detections: list[Detection] = []
        for place, (score, index) in enumerate(zip(answer["scores"].tolist(), answer["labels"].tolist(), strict=True)):
            if score < min_score or len(detections) == max_detections:
                break
            left, top, right, bottom = boxes_N4[place].tolist()
            mask = None
            if "masks" in answer:
                mask = paste_mask(answer["masks"][place, 0], (left, top, right, bottom), height, width).numpy()
            label = self.config.labels[index]
            detections.append(Detection(label, index, score, (left, top, right, bottom), mask))
        return detections


def to_pixels(image: DecodedImage) -> Tensor:
    """Return the pixels of a decoded image, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image.image)).permute(2, 0, 1).contiguous()


def to_full_size(boxes_N4: Tensor, image: DecodedImage) -> Tensor:
    """Bring boxes in a decoded image, which may be smaller, to pixels of the full image, and cut them at its edges."""
    left, top, right, bottom = image.box
    width, height = image.full_size
    scale = torch.tensor([width / (right - left), height / (bottom - top)]).repeat(2)
    full_N4 = (boxes_N4 - torch.tensor([left, top, left, top])) * scale
    return full_N4.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=full_N4.dtype))


def encode_prediction(answer: dict[str, Tensor], height: int, width: int) -> list[tuple[int, dict[str, Any]]]:
    """Return class and COCO result, without the ids of image and category, of each object that a network answered.

    Args:
        answer: `boxes`, `labels`, `scores` and perhaps `masks` in pixels of the image.
        height: Of the image.
        width: Of the image.
    """
    answer = {name: tensor.detach().float().cpu() for name, tensor in answer.items()}
    results = []
    for place, (box, score) in enumerate(zip(answer["boxes"].tolist(), answer["scores"].tolist(), strict=True)):
        left, top, right, bottom = box
        result: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top], "score": score}
        if "masks" in answer:
            result["segmentation"] = encode_mask(paste_mask(answer["masks"][place, 0], box, height, width).numpy())
        results.append((int(answer["labels"][place]), result))
    return results


def load_detector_weights(
    id_or_folder: str | Path, revision: str | None, labels: Sequence[str], *, rois_per_image: int = 512
) -> tuple[nn.Module, DetectorConfig]:
    """Take a detector package as the start of training; the layers of the classes are new if the labels differ.

    Args:
        id_or_folder: `owner/name`, or a folder with a package.
        revision: Branch, tag or commit; the main branch when none is given.
        labels: Class names of the new detector.
        rois_per_image: See `create_detector`.
    """
    source, source_config = Detector.read_package(pull(id_or_folder, revision))
    config = dataclasses.replace(source_config, labels=tuple(labels))
    model = build_detector(config, rois_per_image=rois_per_image)
    weights, own = source.state_dict(), model.state_dict()
    if config.labels != source_config.labels:
        # The shapes of other layers do not depend on the classes; with as many classes, the layers are named.
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if tensor.shape == own[name].shape and not is_class_weight(name)
        }
    model.load_state_dict(weights, strict=False)
    return model, config
