"""Load a detector and find the objects in images.

Shapes: N objects of an image, H height, W width.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from eca_hub.checks import check_count, is_number
from eca_hub.classifier import Classifier, non_finite_scores
from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import Package, is_detector
from eca_hub.hub.pretrained import read_detector
from eca_hub.hub.pull import pull
from eca_hub.images.decode import DecodedImage, ImageSource, load_image
from eca_hub.images.limits import ImageLimits
from eca_hub.images.masks import InstanceMask
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.detectors import (
    InputTransform,
    build_detector,
    for_prepared_images,
    is_class_weight,
    prediction_heads,
)
from eca_hub.predictor import Predictor, check_device

AnyImage = TypeVar("AnyImage", bound=ImageSource)

_DEFAULT_MIN_SCORE = 0.5


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
    mask: InstanceMask | None = None
    """Its pixels: `mask.to_array()`, `.to_rle()` or `.to_polygons()`; None for a detector without masks."""


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """An image as a detector takes it."""

    pixels: Tensor
    """float32 (3, H, W), resized and normalized."""
    full_size: tuple[int, int]
    """Width and height of the upright image in the file."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the file's image inside `pixels`."""

    def to_detections(
        self, output: dict[str, Tensor], labels: Sequence[str], min_score: float | None, max_detections: int
    ) -> list[Detection]:
        """Turn what `Detector.detect` found into detections in pixels of the full image.

        Args:
            output: Boxes, scores, class indices and masks, the most certain first. The network has left out scores
                below its own limit.
            labels: Names of the classes.
            min_score: Lowest score of what is returned; by default 0.5, or the detector's own minimum if it is higher.
            max_detections: How many to return at most.
        """
        least = _DEFAULT_MIN_SCORE if min_score is None else min_score
        width, height = self.full_size
        boxes_N4 = self.to_full_size(output["boxes"])
        detections: list[Detection] = []
        for row, (score, number) in enumerate(zip(output["scores"].tolist(), output["labels"].tolist(), strict=True)):
            if score < least or len(detections) == max_detections:
                break
            left, top, right, bottom = boxes_N4[row].tolist()
            box, index = (left, top, right, bottom), int(number)
            mask = InstanceMask(output["masks"][row, 0].numpy(), box, height, width) if "masks" in output else None
            detections.append(Detection(labels[index], index, score, box, mask))
        return detections

    def to_full_size(self, boxes_N4: Tensor) -> Tensor:
        """Bring boxes in `pixels` to pixels of the full image, and cut them at its edges."""
        left, top, right, bottom = self.box
        width, height = self.full_size
        scale = torch.tensor([width / (right - left), height / (bottom - top)]).repeat(2)
        full_N4 = (boxes_N4 - torch.tensor([left, top, left, top])) * scale
        return full_N4.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=full_N4.dtype))


class Detector(Predictor):
    """A network that finds objects, with its labels and preprocessing.

    Args:
        model: The network, as `create_detector` makes it.
        config: Labels and preprocessing.
        model_id: Hub `owner/name`, or the path of the folder that it came from.
        revision: 40 hexadecimal digits: the commit, or for a folder the hash of its files.
    """

    config: DetectorConfig

    def __init__(self, model: nn.Module, config: DetectorConfig, *, model_id: str, revision: str) -> None:
        super().__init__(model, config, model_id=model_id, revision=revision)
        self._network = for_prepared_images(self.model)
        for head in prediction_heads(self._network):
            head.register_forward_hook(_check_finite)

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
        min_score: float | None = None,
        max_detections: int = 100,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[Detection]: ...
    @overload
    def predict(
        self,
        images: list[AnyImage],
        *,
        min_score: float | None = None,
        max_detections: int = 100,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[list[Detection]]: ...

    def predict(
        self,
        images: ImageSource | list[AnyImage],
        *,
        min_score: float | None = None,
        max_detections: int = 100,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[Detection] | list[list[Detection]]:
        """Find the objects in an image, the most certain first; for several images, a list for each.

        Args:
            images: A path, the bytes of a file, a PIL image, or a list of these.
            min_score: Lowest score of what is returned; by default 0.5, or the detector's own minimum
                (`config.min_score`) if it is higher.
            max_detections: How many objects to return for an image at most.
            on_progress: Called after each image with the number of images done and of all images.

        Raises:
            BadImage: an image is broken, too large, or not an image.
            InvalidConfig: min_score or max_detections is out of range.
            NonFiniteScores: an output of the network is not finite.
        """
        self.check_options(min_score, max_detections)
        if not isinstance(images, list | tuple):
            return self.predict([images], min_score=min_score, max_detections=max_detections, on_progress=on_progress)[
                0
            ]
        detections: list[list[Detection]] = []
        for image in images:
            prepared = self.prepare(self.decode(image))
            [output] = self.detect([prepared])
            detections.append(prepared.to_detections(output, self.config.labels, min_score, max_detections))
            if on_progress is not None:
                on_progress(len(detections), len(images))
        return detections

    def check_options(self, min_score: float | None, max_detections: int) -> None:
        """Refuse options of `predict` that are out of range.

        Raises:
            InvalidConfig: the score is below what the network returns or above 1, or the number below 1.
        """
        if min_score is not None and not (is_number(min_score) and self.config.min_score <= min_score <= 1):
            raise InvalidConfig(f"min_score is {min_score!r}; for this detector it is {self.config.min_score:g} to 1.")
        check_count("max_detections", max_detections)

    def decode(self, source: ImageSource, *, limits: ImageLimits = ImageLimits()) -> DecodedImage:
        """Decode a path, the bytes of a file, or a PIL image, no larger than the network needs.

        Raises:
            BadImage: the image is damaged, too large, or not an image.
        """
        return load_image(source, min_side_px=self.config.min_side_px, limits=limits, bit_depth=self.config.bit_depth)

    def prepare(self, image: DecodedImage) -> PreparedImage:
        """Resize and normalize a decoded image."""
        transform = self.model.transform
        assert isinstance(transform, InputTransform)
        channels = (torch.from_numpy(np.array(image.image.getchannel(index))) for index in range(3))
        pixels_3HW = transform.prepare(channels)
        height, width = pixels_3HW.shape[1:]
        x_scale, y_scale = width / image.image.width, height / image.image.height
        left, top, right, bottom = image.box
        return PreparedImage(
            pixels_3HW, image.full_size, (left * x_scale, top * y_scale, right * x_scale, bottom * y_scale)
        )

    @torch.inference_mode()
    def detect(self, images: Sequence[PreparedImage]) -> list[dict[str, Tensor]]:
        """Find `boxes`, `labels`, `scores` and `masks` of each image, on the CPU, in pixels of what was prepared.

        Raises:
            NonFiniteScores: an output of the network is not finite.
        """
        parameter = next(self.model.parameters())
        try:
            outputs: list[dict[str, Tensor]] = self._network(
                [image.pixels.to(parameter.device, parameter.dtype) for image in images]
            )
            _check_finite(self._network, None, [output.get("masks", parameter.new_empty(0)) for output in outputs])
        except FloatingPointError:
            raise non_finite_scores(self.model_id) from None
        return [{name: tensor.float().cpu() for name, tensor in output.items()} for output in outputs]


def _check_finite(module: nn.Module, inputs: Any, outputs: Any) -> None:
    """Stop at an output of a head that is not finite: torchvision drops such scores, as if nothing were there."""
    if isinstance(outputs, Tensor):
        if not bool(outputs.isfinite().all()):
            raise FloatingPointError("an output is not finite")
        return
    for each in outputs.values() if isinstance(outputs, Mapping) else outputs:
        _check_finite(module, inputs, each)


def load_predictor(
    id_or_folder: str | Path,
    revision: str | None = None,
    *,
    device: str | torch.device = "cpu",
    endpoint: str | None = None,
    token: str | None = None,
) -> Classifier | Detector:
    """Load a package as what it is; the arguments and errors are those of `Classifier.from_pretrained`."""
    checked_device = check_device(device)
    package = pull(id_or_folder, revision, endpoint=endpoint, token=token)
    if is_detector(package.config_bytes):
        return Detector.from_package(package, checked_device)
    return Classifier.from_package(package, checked_device)


def encode_prediction(output: dict[str, Tensor], height: int, width: int) -> list[tuple[int, dict[str, Any]]]:
    """Return class and COCO result, without the ids of image and category, of each object that a network returned.

    Args:
        output: `boxes`, `labels`, `scores` and perhaps `masks` in pixels of the image.
        height: Of the image.
        width: Of the image.
    """
    output = {name: tensor.detach().float().cpu() for name, tensor in output.items()}
    results = []
    for row, (box, score) in enumerate(zip(output["boxes"].tolist(), output["scores"].tolist(), strict=True)):
        left, top, right, bottom = box
        result: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top], "score": score}
        if "masks" in output:
            result["segmentation"] = InstanceMask(output["masks"][row, 0].numpy(), box, height, width).to_rle()
        results.append((int(output["labels"][row]), result))
    return results


def load_detector_weights(
    id_or_folder: str | Path, revision: str | None, labels: Sequence[str], *, rois_per_image: int = 512
) -> tuple[nn.Module, DetectorConfig, bool]:
    """Take a detector package as the start of training; the layers of the classes are new if the labels differ.

    Args:
        id_or_folder: `owner/name`, or a folder with a package.
        revision: Branch, tag or commit; the main branch when none is given.
        labels: Class names of the new detector.
        rois_per_image: See `create_detector`.

    Returns:
        The network, its configuration, and whether the layers of the classes are new.
    """
    source, source_config = Detector.read_package(pull(id_or_folder, revision))
    config = dataclasses.replace(source_config, labels=tuple(labels))
    model = build_detector(config, rois_per_image=rois_per_image)
    weights, own = source.state_dict(), model.state_dict()
    has_new_head = config.labels != source_config.labels
    if has_new_head:
        # The shapes of other layers do not depend on the classes; with as many classes, the layers are named.
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if tensor.shape == own[name].shape and not is_class_weight(name)
        }
    model.load_state_dict(weights, strict=False)
    return model, config, has_new_head
