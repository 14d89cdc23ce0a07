"""Load a classifier and predict the labels of images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from eca_hub.checks import check_count, is_number
from eca_hub.errors import InvalidConfig, NonFiniteScores
from eca_hub.hub.package import Package
from eca_hub.hub.pretrained import read_package
from eca_hub.images.decode import ImageSource
from eca_hub.images.transform import EvalTransform
from eca_hub.models.config import Activation, ModelConfig
from eca_hub.predictor import Predictor

AnyImage = TypeVar("AnyImage", bound=ImageSource)

BATCH_SIZE = 32
"""Images that `predict` holds in memory and runs at a time."""


def check_finite_scores(logits: Tensor, model_id: str) -> None:
    """Check the outputs of a network: weights that are finite may still give NaN, as a negative variance does.

    Args:
        logits: Of any shape.
        model_id: Name of the network in the message.

    Raises:
        NonFiniteScores: an output is not finite.
    """
    if not bool(logits.isfinite().all()):
        raise non_finite_scores(model_id)


def non_finite_scores(model_id: str) -> NonFiniteScores:
    """Return the error of a network whose outputs for an image are not finite."""
    return NonFiniteScores(
        f"The network of {model_id} gives no finite scores for this image: its weights are damaged, or those of "
        "another architecture.",
        hint="Download the package again, or train the network again.",
    )


@dataclass(frozen=True)
class Prediction:
    """One class and its probability."""

    label: str
    """Name of the class."""
    index: int
    """Index of the network's output."""
    score: float
    """Probability, 0 to 1."""


class Classifier(Predictor):
    """A network with its labels and preprocessing.

    Args:
        model: The network, mapping (N, C, H, W) to (N, K) logits.
        config: Labels and preprocessing.
        model_id: Hub `owner/name`, or the path of the folder that it came from.
        revision: 40 hexadecimal digits: the commit, or for a folder the hash of its files.
    """

    config: ModelConfig

    def __init__(self, model: nn.Module, config: ModelConfig, *, model_id: str, revision: str) -> None:
        super().__init__(model, config, model_id=model_id, revision=revision)
        self.transform = EvalTransform(config.image)

    @staticmethod
    def read_package(package: Package) -> tuple[nn.Module, ModelConfig]:
        """Make the network of a package, and its configuration."""
        return read_package(package)

    @overload
    def predict(
        self,
        images: ImageSource,
        *,
        top_k: int = 5,
        min_score: float = 0.0,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        images: list[AnyImage],
        *,
        top_k: int = 5,
        min_score: float = 0.0,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[list[Prediction]]: ...

    def predict(
        self,
        images: ImageSource | list[AnyImage],
        *,
        top_k: int = 5,
        min_score: float = 0.0,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """Predict the labels of an image, the likeliest first; of several images, a list for each.

        Of a multi-label model (`config.is_multi_label`) each score is the probability of that class by itself.

        Images are decoded and run in batches, so the memory does not grow with their number.

        Args:
            images: A path, the bytes of a file, a PIL image, or a list of these.
            top_k: How many classes to return; all of them if there are fewer.
            min_score: Leave out classes that are less likely, such as 0.5 for the labels of a multi-label model.
            batch_size: How many images to decode and run at a time.
            on_progress: Called after each batch with the number of images done and of all images.

        Raises:
            BadImage: an image is broken, too large, or not an image.
            InvalidConfig: top_k or batch_size is no whole number from 1 on, or min_score is not 0 to 1.
            NonFiniteScores: an output of the network is not finite.
        """
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            check_count(name, value)
        if not is_number(min_score) or not 0 <= min_score <= 1:
            raise InvalidConfig(f"min_score is {min_score!r}; it must be 0 to 1.")
        if not isinstance(images, list | tuple):
            return self.predict([images], top_k=top_k, min_score=min_score, on_progress=on_progress)[0]
        predictions: list[list[Prediction]] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels_NCHW = torch.stack([self.transform.resize_and_crop(self.transform.decode(each)) for each in batch])
            predictions += [self.rank(row_K, top_k, min_score) for row_K in self.probabilities(pixels_NCHW)]
            if on_progress is not None:
                on_progress(len(predictions), len(images))
        return predictions

    @torch.inference_mode()
    def probabilities(self, pixels_NCHW: Tensor) -> Tensor:
        """Map uint8 pixels (N, C, H, W) to probabilities (N, K) on the CPU.

        Raises:
            NonFiniteScores: an output of the network is not finite.
        """
        device = next(self.model.parameters()).device
        logits_NK: Tensor = self.model(self.transform.normalize(pixels_NCHW.to(device)))
        check_finite_scores(logits_NK, self.model_id)
        return self.to_scores(logits_NK.float(), self.config.activation).cpu()

    @staticmethod
    def to_scores(logits: Tensor, activation: Activation) -> Tensor:
        """Map logits (..., K) to scores.

        Args:
            logits: Of the network.
            activation: `softmax` gives shares that sum to 1, `sigmoid` the probability of each class by itself, `none`
                the logits; `config.activation` is that of the model.
        """
        if activation == "softmax":
            return logits.softmax(-1)
        return logits.sigmoid() if activation == "sigmoid" else logits

    def rank(self, probabilities_K: Tensor, top_k: int, min_score: float = 0.0) -> list[Prediction]:
        """Return the `top_k` likeliest classes of one image, without those less likely than `min_score`."""
        scores, indices = probabilities_K.topk(min(top_k, len(self.config.labels)))
        return [
            Prediction(self.config.labels[index], index, score)
            for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
            if score >= min_score
        ]
