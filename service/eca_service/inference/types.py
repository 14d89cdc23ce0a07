"""The plain values that pass between decoding, batching, the engines and the routes. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

Activation = Literal["softmax", "sigmoid", "none"]
"""How logits become scores."""

Value = TypeVar("Value", covariant=True)
Pixels = TypeVar("Pixels", covariant=True)


@dataclass(frozen=True, slots=True)
class RawPixels:
    """An image that needs no decoding: it already has the network's size."""

    data: bytes
    """Height x width bytes for each channel: red, green and blue, or gray."""


class DecodedImage(Protocol[Pixels]):
    """The result of decoding one image, with its cost."""

    @property
    def pixels(self) -> Pixels:
        """The network's input."""

    @property
    def wait_ms(self) -> float:
        """Time until a decoder thread was free."""

    @property
    def decode_ms(self) -> float:
        """Time in the decoder thread."""


@dataclass(frozen=True, slots=True)
class ImageResult(Generic[Value]):
    """The result for one image."""

    value: Value
    """What the task made of the network's output."""
    decode_ms: float
    """Time in the decoder thread."""
    queue_ms: float
    """Time spent waiting, for a decoder thread and for a batch."""
    engine_ms: float
    """Time of the batch in the engine."""
    total_ms: float
    """From the request to this result."""
    batch_size: int
    """Images that went through the engine together."""
    decoder_wait_ms: float = 0.0
    """The part of `queue_ms` that was spent waiting for a decoder thread."""


@dataclass(frozen=True)
class ParityReport:
    """How the optimized network compares with the network as it was loaded, on stored images."""

    precision: str
    """Number format of the optimized network."""
    same_top1: float
    """Share of the images whose most likely class is the same."""
    max_difference: float
    """Largest change of a probability."""
    num_images: int
    """Number of images that were compared; 0 for a network that runs as it was loaded."""
    allowed_difference: float = 0.0
    """Largest change that is accepted in this number format."""
    rejected: tuple[str, ...] = ()
    """Faster forms that were tried before, by number format, and changed the results too much."""


@dataclass(frozen=True)
class ModelInfo:
    """What a client may read about a served model."""

    model_id: str
    """Hub `owner/name`, or the path of a folder."""
    revision: str
    """40 hexadecimal digits."""
    architecture: str
    """Name of the network."""
    attention: str
    """Name of the attention inside it."""
    labels: tuple[str, ...]
    """Names of the classes."""
    height_px: int
    """Height of the network's input; 0 where it takes any size."""
    width_px: int
    """Width of the network's input; 0 where it takes any size."""
    num_parameters: int
    """Number of learned parameters."""
    device: str
    """Where the network runs."""
    parity: ParityReport
    """Comparison with the network before optimization."""
    num_channels: int = 3
    """Channels of the network's input: 3 for RGB, 1 for gray."""
    weights_bytes: int = 0
    """Size of the weights in memory."""
    activation: Activation = "softmax"
    """How logits become scores: `softmax`, or `sigmoid` for a model that gives an image any number of labels."""
    tasks: tuple[str, ...] = ("classify",)
    """Names of the tasks that the network supports."""
    min_score: float = 0.0
    """Lowest score of an object that the network answers."""
    has_masks: bool = False
    """Whether objects come with masks."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else /v1/models says about it."""
