"""Prepare a detector for the engines: as it was loaded, in float32, once for each device.

A detector is neither folded nor compiled nor run in half precision. The parity check of classifiers compares
probabilities of the same classes; the boxes of two number formats are other boxes, so that nothing would prove that the
answers are those of the library.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from eca_hub import Detector, ImageLimits, PreparedImage
from eca_service.inference.tasks import DETECTOR_TASKS
from eca_service.inference.types import ModelInfo, ParityReport, RawPixels
from eca_service.models.package import LoadedPackage
from eca_service.optimize.optimize import OptimizedModel, num_bytes
from eca_service.settings import Settings

_MAX_BATCH_ON_CPU, _MAX_BATCH_ON_GPU = 1, 8
"""On a processor one image of 800 px keeps all units busy, and a batch would only wait for its slowest image."""
_TYPICAL_ASPECT = 4 / 3

_logger = logging.getLogger(__name__)


class DetectorInputs:
    """Decodes, resizes and normalizes images in a decoder thread, so that what waits has the network's size.

    Args:
        detector: The model.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def from_file(self, data: bytes, limits: ImageLimits) -> PreparedImage:
        """Decode the bytes of an image."""
        return self._detector.prepare(self._detector.decode(data, limits=limits))

    def from_raw(self, image: RawPixels) -> PreparedImage:
        """Refuse: a detector has no one size that raw pixels could have."""
        raise NotImplementedError


def prepare_detector(
    detector: Detector, settings: Settings, devices: Sequence[str], limits: ImageLimits, num_cores: int
) -> LoadedPackage:
    """Make a detector ready for each device; the arguments are those of `prepare_classifier`."""
    config = detector.config
    if settings.precision not in ("auto", "fp32") or settings.compile:
        _logger.warning("%s is a detector and runs in float32 as it was loaded, not compiled", detector.model_id)
    copies = [detector, *(_copied_to(device, detector) for device in devices[1:])]
    networks = [_as_loaded(one) for one in copies]
    info = ModelInfo(
        model_id=detector.model_id,
        revision=detector.revision,
        architecture=config.backbone,
        attention=config.attention,
        labels=config.labels,
        height_px=0,
        width_px=0,
        num_parameters=networks[0].num_parameters,
        device=",".join(str(network.device) for network in networks),
        parity=networks[0].parity,
        weights_bytes=sum(num_bytes(network.module) for network in networks),
        tasks=networks[0].tasks,
        min_score=config.min_score,
        has_masks=config.has_masks,
        facts={
            "detector": config.detector,
            "min_side_px": config.min_side_px,
            "max_side_px": config.max_side_px,
            "min_score": config.min_score,
            "max_detections": config.max_detections,
            "has_masks": config.has_masks,
        },
    )
    is_on_cpu = all(network.device.type == "cpu" for network in networks)
    max_batch = _MAX_BATCH_ON_CPU if is_on_cpu else _MAX_BATCH_ON_GPU
    return LoadedPackage(info, networks, DetectorInputs(detector), [_blank(detector)], max_batch=max_batch)


def _as_loaded(detector: Detector) -> OptimizedModel:
    parameters = list(detector.model.parameters())
    forwards: Mapping[str, Any] = {task.name: partial(task.forward, detector) for task in DETECTOR_TASKS}
    return OptimizedModel(
        new_forwards=lambda: forwards,
        device=parameters[0].device,
        module=detector.model,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        parity=ParityReport("float32", 1.0, 0.0, 0),
        tasks=tuple(forwards),
    )


def _blank(detector: Detector) -> PreparedImage:
    """Return an image of common proportions."""
    height = detector.config.min_side_px
    width = min(round(height * _TYPICAL_ASPECT), detector.config.max_side_px)
    return PreparedImage(torch.zeros(3, height, width), (width, height), (0.0, 0.0, float(width), float(height)))


def _copied_to(device: str, detector: Detector) -> Detector:
    return Detector(
        copy.deepcopy(detector.model).to(device),
        detector.config,
        model_id=detector.model_id,
        revision=detector.revision,
    )
