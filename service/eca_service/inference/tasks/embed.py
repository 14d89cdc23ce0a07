"""Embedding: the pooled features in front of the network's last layer, for search and clustering.

Shapes: N images, F features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from eca_service.inference.tasks.task import Task
from eca_service.inference.types import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Embedding(Task[list[float]]):
    """Return the features that the classifier's last layer reads."""

    name: ClassVar[str] = "embed"

    normalize: bool = False
    """Whether to scale the features to an L2 norm of 1."""

    @staticmethod
    def is_supported_by(network: "nn.Module") -> bool:
        """Whether the network is built as timm's or torchvision's classifiers are."""
        return _is_timm(network) or _is_torchvision(network)

    @staticmethod
    def forward(network: "nn.Module", batch: "Tensor") -> "Tensor":
        """Compute pooled features (N, F) of normalized pixels (N, C, H, W)."""
        parts: Any = network
        features_NF: Tensor
        if _is_timm(network):
            features_NF = parts.forward_head(parts.forward_features(batch), pre_logits=True)
        else:
            features_NF = parts.features(batch).mean((2, 3))
        return features_NF.flatten(1)

    def postprocess(self, output: "Tensor", item: Any, info: ModelInfo) -> list[float]:
        """Scale the features if the request asks for it."""
        features: list[float] = (output / output.norm().clamp_min(1e-12) if self.normalize else output).tolist()
        return features


def _is_timm(network: "nn.Module") -> bool:
    return hasattr(network, "forward_features") and hasattr(network, "forward_head")


def _is_torchvision(network: "nn.Module") -> bool:
    """Whether it is like MobileNetV2: convolutions, the mean over the map, a classifier."""
    return hasattr(network, "features") and hasattr(network, "classifier")
