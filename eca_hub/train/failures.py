"""What breaks under a run that is not our mistake, as sentences: workers that died, memory, processes that are gone."""

import re

import torch

from eca_hub.errors import EcaHubError
from eca_hub.train.errors import TrainingStopped

_RESUME = "Add --resume to go on."


def as_sentence(error: BaseException) -> EcaHubError | None:
    """Tell what happened; None for what nobody has thought of, which deserves its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return TrainingStopped(
            f"There is not enough memory: {text[:200] or 'an allocation failed'}.",
            hint="Lower --data.batch_size, raise --trainer.accumulate_grad_batches; --resume --allow_changes goes on.",
        )
    if worker := re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)?", text):
        return TrainingStopped(f"The data worker {worker.group(1).strip()} died: {text[:200]}", hint=_RESUME)
    if re.search(r"gloo|nccl|Connection (closed|reset)|ProcessGroup|Broken pipe", text, re.IGNORECASE):
        return TrainingStopped(
            f"Another process of this run is gone, so this one cannot go on: {text[:160]}", hint=_RESUME
        )
    return None
