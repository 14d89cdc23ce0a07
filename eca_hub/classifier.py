"""Pictures in, named scores out: the three lines that a puller types.

Knows the hub, the decoder and the network; knows nothing of training, HTTP or batching.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import torch
from PIL import Image
from torch import Tensor, nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import read_package
from eca_hub.hub.pull import pull
from eca_hub.images.transform import EvalTransform
from eca_hub.models.config import ModelConfig

Picture = str | Path | bytes | Image.Image
AnyPicture = TypeVar("AnyPicture", bound=Picture)


@dataclass(frozen=True)
class Prediction:
    """One class and how likely it is."""

    label: str
    """Name of the class."""
    index: int
    """Its place among the network's outputs."""
    score: float
    """Probability, 0 to 1."""


class Classifier:
    """A network with its labels and its preprocessing, ready to name what is in a picture.

    Args:
        model: The network, mapping (N, C, H, W) to (N, K) logits.
        config: Labels and preprocessing.
        model_id: What to call it: Hub `owner/name`, or the path of the folder it came from.
        revision: 40 hexadecimal digits: the commit, or for a folder the hash of its files.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, *, model_id: str, revision: str) -> None:
        self.model = model.eval()
        self.config = config
        self.model_id = model_id
        self.revision = revision
        self.transform = EvalTransform(config.image)

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device = "cpu",
        endpoint: str | None = None,
        token: str | None = None,
    ) -> "Classifier":
        """Load a package from the Hub or from a folder.

        Args:
            id_or_folder: `owner/name`, or a folder with the three files of a package.
            revision: Branch, tag or commit; the main branch when none is given.
            device: Where the network shall run.
            endpoint: Address of the hub; HF_ENDPOINT when none is given.
            token: Key to private repositories; HF_TOKEN or the client's login when none is given.

        Raises:
            HubError: the package is not to be had, or its bytes are not what the hub announced.
            CheckpointMismatch: the weights do not fit the network that config.json describes.
        """
        package = pull(id_or_folder, revision, endpoint=endpoint, token=token)
        model, config = read_package(package)
        return cls(model.to(device), config, model_id=package.model_id, revision=package.revision)

    @overload
    def predict(self, images: Picture, *, top_k: int = 5) -> list[Prediction]: ...
    @overload
    def predict(self, images: list[AnyPicture], *, top_k: int = 5) -> list[list[Prediction]]: ...

    def predict(
        self, images: Picture | list[AnyPicture], *, top_k: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Name what is in a picture, the likeliest class first; for a list of pictures, a list of answers.

        Args:
            images: A path, the bytes of a file, a PIL image, or a list of these.
            top_k: How many classes to name; more than there are means all.

        Raises:
            BadImage: a picture is broken, too large, or no picture.
            InvalidConfig: top_k is below 1.
        """
        if top_k < 1:
            raise InvalidConfig(f"top_k is {top_k}; it must be 1 or more.")
        if isinstance(images, str | Path | bytes | Image.Image):
            return self.predict([images], top_k=top_k)[0]
        if not images:
            return []
        pixels_NCHW = torch.stack([self.transform.resize_and_crop(self.transform.decode(image)) for image in images])
        return [self.rank(row_K, top_k) for row_K in self.probabilities(pixels_NCHW)]

    @torch.inference_mode()
    def probabilities(self, pixels_NCHW: Tensor) -> Tensor:
        """Map uint8 pixels (N, C, H, W) to probabilities (N, K) on the CPU."""
        device = next(self.model.parameters()).device
        logits_NK: Tensor = self.model(self.transform.normalize(pixels_NCHW.to(device)))
        return logits_NK.float().softmax(1).cpu()

    def rank(self, probabilities_K: Tensor, top_k: int) -> list[Prediction]:
        """Name the `top_k` likeliest classes of one picture."""
        scores, indices = probabilities_K.topk(min(top_k, len(self.config.labels)))
        return [
            Prediction(self.config.labels[index], index, score)
            for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
        ]
