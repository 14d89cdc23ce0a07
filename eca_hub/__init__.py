"""eca-hub: ECA-Net image classifiers you can pull, serve and retrain.

    classifier = eca_hub.Classifier.from_pretrained("acme/eca_resnet50")
    classifier.predict("cat.jpg", top_k=3)

This is the front door: every name here may be relied on, and `service` uses no others. Names are resolved when they are
first used, so `import eca_hub` costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eca_hub.attention import ATTENTIONS
    from eca_hub.attention.eca import ECA, kernel_size_for
    from eca_hub.classifier import Classifier, Prediction
    from eca_hub.commandline import CommandParser
    from eca_hub.commands.localhub import open_hub
    from eca_hub.errors import EcaHubError
    from eca_hub.explain import Explanation, Gates, explain_picture
    from eca_hub.hub.convert import convert_checkpoint
    from eca_hub.hub.pretrained import export_to_timm, load_pretrained, save_pretrained
    from eca_hub.hub.push import push_to_hub
    from eca_hub.images.decode import ImageLimits, decode_image
    from eca_hub.images.gpu_jpeg import GpuJpegDecoder
    from eca_hub.images.transform import EvalTransform
    from eca_hub.models.build import create_model, list_models
    from eca_hub.models.complexity import Complexity, count_complexity
    from eca_hub.models.config import ImageConfig, ModelConfig

__version__ = "0.1.0"

__all__ = [
    "ATTENTIONS",
    "ECA",
    "Classifier",
    "CommandParser",
    "Complexity",
    "EcaHubError",
    "EvalTransform",
    "Explanation",
    "Gates",
    "GpuJpegDecoder",
    "ImageConfig",
    "ImageLimits",
    "ModelConfig",
    "Prediction",
    "convert_checkpoint",
    "count_complexity",
    "create_model",
    "decode_image",
    "explain_picture",
    "export_to_timm",
    "kernel_size_for",
    "list_models",
    "load_pretrained",
    "open_hub",
    "push_to_hub",
    "save_pretrained",
]

_HOME_OF = {
    "ATTENTIONS": "eca_hub.attention",
    "ECA": "eca_hub.attention.eca",
    "Classifier": "eca_hub.classifier",
    "CommandParser": "eca_hub.commandline",
    "Complexity": "eca_hub.models.complexity",
    "EcaHubError": "eca_hub.errors",
    "EvalTransform": "eca_hub.images.transform",
    "Explanation": "eca_hub.explain",
    "Gates": "eca_hub.explain",
    "GpuJpegDecoder": "eca_hub.images.gpu_jpeg",
    "ImageConfig": "eca_hub.models.config",
    "ImageLimits": "eca_hub.images.decode",
    "ModelConfig": "eca_hub.models.config",
    "Prediction": "eca_hub.classifier",
    "convert_checkpoint": "eca_hub.hub.convert",
    "count_complexity": "eca_hub.models.complexity",
    "create_model": "eca_hub.models.build",
    "decode_image": "eca_hub.images.decode",
    "explain_picture": "eca_hub.explain",
    "export_to_timm": "eca_hub.hub.pretrained",
    "kernel_size_for": "eca_hub.attention.eca",
    "list_models": "eca_hub.models.build",
    "load_pretrained": "eca_hub.hub.pretrained",
    "open_hub": "eca_hub.commands.localhub",
    "push_to_hub": "eca_hub.hub.push",
    "save_pretrained": "eca_hub.hub.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'eca_hub' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
