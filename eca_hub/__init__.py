"""eca-hub: ECA-Net image classifiers that you can pull, serve and retrain.

    classifier = eca_hub.Classifier.from_pretrained("acme/eca_resnet50")
    classifier.predict("cat.jpg", top_k=3)

The names in `__all__` are the public API. They are imported when they are first used, so `import eca_hub` imports no
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eca_hub.attention import ATTENTIONS
    from eca_hub.attention.eca import ECA, kernel_size_for
    from eca_hub.classifier import Classifier, Prediction
    from eca_hub.detector import Detection, Detector, PreparedImage, load_predictor
    from eca_hub.errors import EcaHubError
    from eca_hub.explain import Explanation, explain_image
    from eca_hub.hub.convert.checkpoint import convert_checkpoint, convert_detector
    from eca_hub.hub.pretrained import export_to_timm, load_pretrained, push_to_hub, save_pretrained
    from eca_hub.images.decode import decode_image
    from eca_hub.images.gpu_jpeg import GpuJpegDecoder
    from eca_hub.images.limits import ImageLimits
    from eca_hub.images.masks import InstanceMask
    from eca_hub.images.transform import EvalTransform
    from eca_hub.models.build import create_model, list_models
    from eca_hub.models.complexity import Complexity, count_complexity
    from eca_hub.models.config import ImageConfig, ModelConfig
    from eca_hub.models.detector_config import DetectorConfig
    from eca_hub.models.detectors import create_detector
    from eca_hub.releases import DEFAULT_RELEASE, list_releases

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "ATTENTIONS": "eca_hub.attention",
    "DEFAULT_RELEASE": "eca_hub.releases",
    "ECA": "eca_hub.attention.eca",
    "Classifier": "eca_hub.classifier",
    "Complexity": "eca_hub.models.complexity",
    "Detection": "eca_hub.detector",
    "Detector": "eca_hub.detector",
    "DetectorConfig": "eca_hub.models.detector_config",
    "EcaHubError": "eca_hub.errors",
    "EvalTransform": "eca_hub.images.transform",
    "Explanation": "eca_hub.explain",
    "GpuJpegDecoder": "eca_hub.images.gpu_jpeg",
    "ImageConfig": "eca_hub.models.config",
    "ImageLimits": "eca_hub.images.limits",
    "InstanceMask": "eca_hub.images.masks",
    "ModelConfig": "eca_hub.models.config",
    "Prediction": "eca_hub.classifier",
    "PreparedImage": "eca_hub.detector",
    "convert_checkpoint": "eca_hub.hub.convert.checkpoint",
    "convert_detector": "eca_hub.hub.convert.checkpoint",
    "count_complexity": "eca_hub.models.complexity",
    "create_detector": "eca_hub.models.detectors",
    "create_model": "eca_hub.models.build",
    "decode_image": "eca_hub.images.decode",
    "explain_image": "eca_hub.explain",
    "export_to_timm": "eca_hub.hub.pretrained",
    "kernel_size_for": "eca_hub.attention.eca",
    "list_models": "eca_hub.models.build",
    "list_releases": "eca_hub.releases",
    "load_predictor": "eca_hub.detector",
    "load_pretrained": "eca_hub.hub.pretrained",
    "push_to_hub": "eca_hub.hub.pretrained",
    "save_pretrained": "eca_hub.hub.pretrained",
}

__all__ = [
    "ATTENTIONS",
    "DEFAULT_RELEASE",
    "ECA",
    "Classifier",
    "Complexity",
    "Detection",
    "Detector",
    "DetectorConfig",
    "EcaHubError",
    "EvalTransform",
    "Explanation",
    "GpuJpegDecoder",
    "ImageConfig",
    "ImageLimits",
    "InstanceMask",
    "ModelConfig",
    "Prediction",
    "PreparedImage",
    "convert_checkpoint",
    "convert_detector",
    "count_complexity",
    "create_detector",
    "create_model",
    "decode_image",
    "explain_image",
    "export_to_timm",
    "kernel_size_for",
    "list_models",
    "list_releases",
    "load_predictor",
    "load_pretrained",
    "push_to_hub",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'eca_hub' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
