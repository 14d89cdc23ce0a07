"""A task: how images are batched, run and turned into results.

An instance holds the options of one request. `collate` and `forward` belong to the class, because one batch may hold
images of several requests with different options. Importing this module imports no torch.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from eca_service.inference.types import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = TypeVar("Value")


class Task(Generic[Value]):
    """One use of a network; subclasses are frozen dataclasses whose fields are the options of a request."""

    name: ClassVar[str]
    """Key of the task among the forwards of an engine; /v1/NAME is its route."""
    is_slow_to_postprocess: ClassVar[bool] = False
    """Whether `postprocess` takes so long that it needs a thread of its own."""

    @staticmethod
    def is_supported_by(network: "nn.Module") -> bool:
        """Whether a network can be asked for this."""
        return True

    def check(self, info: ModelInfo) -> None:
        """Refuse options that do not suit the model, before anything is decoded.

        Raises:
            InvalidRequest: an option does not suit the model.
        """

    @staticmethod
    def bucket(item: Any) -> Hashable:
        """Return what images must have in common to be run together, such as their size."""
        return None

    @staticmethod
    def collate(items: Sequence[Any]) -> Any:
        """Put decoded images into one batch; runs in an engine thread."""
        import torch

        return torch.stack(list(items))

    @staticmethod
    def forward(network: Any, batch: Any) -> "Tensor | Sequence[Tensor]":
        """Run the network on a batch; the output has one row, or one tensor, for each image."""
        raise NotImplementedError

    def postprocess(self, output: "Tensor", item: Any, info: ModelInfo) -> Value:
        """Turn the output of one image, float32 on the CPU, into its result.

        Args:
            output: Of the network.
            item: The decoded image.
            info: What is known of the model.
        """
        raise NotImplementedError


class WorkItem(NamedTuple):
    """One image in a batch."""

    task: type[Task[Any]]
    """What is asked for."""
    value: Any
    """The decoded image."""


def run_batch(
    forwards: "Mapping[str, Callable[[Any], Tensor | Sequence[Tensor]]]", items: Sequence[WorkItem]
) -> "list[Tensor]":
    """Run a batch, with one forward for each task and bucket in it; the outputs keep the order of the items.

    Args:
        forwards: Task name to the function that maps a collated batch to float32 rows on the CPU.
        items: The images.
    """
    outputs: dict[int, Any] = {}
    groups: dict[tuple[type[Task[Any]], Hashable], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.task, item.task.bucket(item.value)), []).append(index)
    for (task, _), indices in groups.items():
        rows = forwards[task.name](task.collate([items[index].value for index in indices]))
        outputs.update(zip(indices, rows, strict=True))
    return [outputs[index] for index in range(len(items))]
