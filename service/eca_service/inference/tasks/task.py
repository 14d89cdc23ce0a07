"""A task: how an image is decoded, batched, run and turned into a result.

An instance holds the options of one request. `collate` and `forward` belong to the class, because one batch may hold
images of several requests with different options. Importing this module imports no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from eca_service.inference.types import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = TypeVar("Value")


class Task(Generic[Value]):
    """One use of a network; subclasses are frozen dataclasses whose fields are the options of a request."""

    name: ClassVar[str]
    """Key of the task among the forwards of an engine."""

    @staticmethod
    def is_supported_by(network: "nn.Module") -> bool:
        """Whether a network can be asked for this."""
        return True

    def check(self, info: ModelInfo) -> None:
        """Refuse options that do not suit the model, before anything is decoded.

        Raises:
            InvalidRequest: an option does not suit the model.
        """

    def decode(self, data: bytes, to_input: "Callable[[bytes], Tensor]") -> "Tensor":
        """Map the bytes of an image to one item of a batch; runs in a decoder thread.

        Args:
            data: The file.
            to_input: Decodes, resizes and crops to the network's input, uint8 (3, H, W).

        Raises:
            BadImage: the image is broken or too large.
        """
        return to_input(data)

    @staticmethod
    def collate(items: "Sequence[Tensor]") -> "Tensor":
        """Put the items of several images into one batch; runs in an engine thread."""
        import torch

        return torch.stack(list(items))

    @staticmethod
    def forward(network: "nn.Module", x_N3HW: "Tensor") -> "Tensor":
        """Run the network on normalized pixels; the output has one row for each image."""
        raise NotImplementedError

    def postprocess(self, output: "Tensor", info: ModelInfo) -> Value:
        """Turn the output of one image, float32 on the CPU, into its result."""
        raise NotImplementedError


class WorkItem(NamedTuple):
    """One image in a batch."""

    task: type[Task[Any]]
    """What is asked for."""
    value: Any
    """The decoded image."""


def run_batch(forwards: "Mapping[str, Callable[[Tensor], Tensor]]", items: Sequence[WorkItem]) -> "list[Tensor]":
    """Run a batch, with one forward for each task in it; the outputs keep the order of the items.

    Args:
        forwards: Task name to the function that maps a collated batch to float32 rows on the CPU.
        items: The images.
    """
    outputs: dict[int, Any] = {}
    for task in dict.fromkeys(item.task for item in items):
        places = [place for place, item in enumerate(items) if item.task is task]
        rows = forwards[task.name](task.collate([items[place].value for place in places]))
        outputs.update(zip(places, rows.unbind(0), strict=True))
    return [outputs[place] for place in range(len(items))]
