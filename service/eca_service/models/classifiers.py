"""Prepare a classifier for the engines, once for each device.

On a processor a network serves as it was loaded while its optimized form is made and compared with it, so that the
first answer does not wait for that. Its weights are in memory twice until then. A network that is compiled, or captured
for each size of a batch, is optimized before it serves.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from eca_hub import Classifier, EvalTransform, GpuJpegDecoder, ImageLimits
from eca_service.inference.types import ModelInfo, RawPixels
from eca_service.models.package import LoadedPackage
from eca_service.optimize.optimize import as_loaded, num_bytes, number_formats, optimize_model
from eca_service.optimize.parity import parity_images
from eca_service.settings import Settings

_MAX_BATCH_ON_CPU, _MAX_BATCH_ON_GPU = 4, 32


class ClassifierInputs:
    """Decodes, resizes and crops images to uint8 (C, H, W), where C is 3 for RGB and 1 for gray.

    Args:
        transform: The model's preprocessing.
        gpu_jpegs: Decodes ordinary JPEGs on a GPU, if given.
    """

    def __init__(self, transform: EvalTransform, gpu_jpegs: GpuJpegDecoder | None = None) -> None:
        self._transform = transform
        self._gpu_jpegs = gpu_jpegs

    def from_file(self, data: bytes, limits: ImageLimits) -> Tensor:
        """Decode the bytes of an image."""
        pixels = self._gpu_jpegs.decode(data) if self._gpu_jpegs else None
        if pixels is None:
            pixels = self._transform.resize_and_crop(self._transform.decode(data, limits=limits))
        return pixels

    def from_raw(self, image: RawPixels) -> Tensor:
        """Take pixels that have the network's size."""
        config = self._transform.config
        shape = (config.in_chans, config.height_px, config.width_px)
        return torch.frombuffer(bytearray(image.data), dtype=torch.uint8).view(shape)


def prepare_classifier(
    classifier: Classifier, settings: Settings, devices: Sequence[str], limits: ImageLimits, num_cores: int
) -> LoadedPackage:
    """Make a classifier ready for each device.

    Args:
        classifier: The package as it was loaded, on the first device.
        settings: How to run it.
        devices: Their names.
        limits: What an image may cost.
        num_cores: Cores that an image may use while no other is being run.

    Raises:
        BadSetting: a device cannot compute in the number format of the settings.
    """
    copies = [classifier, *(_copied_to(device, classifier) for device in devices[1:])]
    networks = [as_loaded(one) for one in copies]
    for network in networks:
        number_formats(settings.precision, network.device)
    explained = _copied_to(devices[0], classifier) if settings.explain else None
    on_gpu = settings.decode_on == "gpu"
    gpu_jpegs = GpuJpegDecoder(classifier.transform, limits, str(networks[0].device)) if on_gpu else None
    config, image = classifier.config, classifier.config.image
    is_on_cpu = all(network.device.type == "cpu" for network in networks)
    package = LoadedPackage(
        ModelInfo(
            model_id=classifier.model_id,
            revision=classifier.revision,
            architecture=config.architecture,
            attention=config.attention,
            labels=config.labels,
            activation=config.activation,
            height_px=image.height_px,
            width_px=image.width_px,
            num_channels=image.in_chans,
            num_parameters=networks[0].num_parameters,
            device=",".join(str(network.device) for network in networks),
            parity=networks[0].parity,
            tasks=networks[0].tasks,
            facts={"input_px": [image.height_px, image.width_px], "crop": image.crop, "crop_mode": image.crop_mode},
        ),
        networks,
        ClassifierInputs(classifier.transform, gpu_jpegs),
        list(parity_images(classifier.transform)),
        max_batch=_MAX_BATCH_ON_CPU if is_on_cpu else _MAX_BATCH_ON_GPU,
        explained=explained,
    )
    package = replace(package, info=replace(package.info, weights_bytes=_weights_bytes(package)))
    optimize = partial(_optimized, package, copies, settings, num_cores)
    return replace(package, optimize=optimize) if is_on_cpu and not settings.compile else optimize()


def _optimized(
    package: LoadedPackage, copies: Sequence[Classifier], settings: Settings, num_cores: int
) -> LoadedPackage:
    """Optimize each network; the package shares all else, so that it takes the place of the first one."""
    networks = [
        optimize_model(one, settings.precision, compiled=settings.compile, num_cores=num_cores) for one in copies
    ]
    package = replace(package, networks=networks)
    # Of several devices, the one whose probabilities moved furthest.
    parity = max((network.parity for network in networks), key=lambda report: report.max_difference)
    return replace(package, info=replace(package.info, parity=parity, weights_bytes=_weights_bytes(package)))


def _weights_bytes(package: LoadedPackage) -> int:
    return sum(map(num_bytes, package.modules))


def _copied_to(device: str, classifier: Classifier) -> Classifier:
    """The same classifier with weights of its own."""
    copied = copy.copy(classifier)
    copied.model = copy.deepcopy(classifier.model).to(device)
    return copied
