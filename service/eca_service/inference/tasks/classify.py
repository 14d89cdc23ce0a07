"""Classification: the most likely classes of an image.

Shapes: N images, K classes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from eca_service.errors import InvalidRequest
from eca_service.inference.tasks.task import Task
from eca_service.inference.types import Activation, ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

    from eca_hub import Prediction

_DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Classification(Task["list[Prediction]"]):
    """Name the most likely classes."""

    name: ClassVar[str] = "classify"

    top_k: int | None = None
    """Number of classes to name; None is five, or all where there are fewer."""
    activation: Activation | None = None
    """How logits become scores; None is the model's own: sigmoid for several labels an image, else softmax."""

    def check(self, info: ModelInfo) -> None:
        """Raise InvalidRequest unless `top_k` is 1 to the number of classes."""
        num_classes = len(info.labels)
        if self.top_k is not None and not 1 <= self.top_k <= num_classes:
            raise InvalidRequest(f"top_k must be 1 to {num_classes}, the number of classes of this model.")

    @staticmethod
    def forward(network: "nn.Module", batch: "Tensor") -> "Tensor":
        """Compute logits (N, K) of normalized pixels (N, C, H, W)."""
        logits_NK: Tensor = network(batch)
        return logits_NK

    def postprocess(self, output: "Tensor", item: Any, info: ModelInfo) -> "list[Prediction]":
        """Name the classes with the highest scores, the highest first."""
        from eca_hub import Classifier, Prediction

        labels = info.labels
        top_k = min(_DEFAULT_TOP_K if self.top_k is None else self.top_k, len(labels))
        scores, indices = Classifier.to_scores(output, self.activation or info.activation).topk(top_k)
        return [
            Prediction(labels[index], index, score)
            for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
        ]
