"""What breaks under a run that is not our mistake, as sentences: workers that died, memory, processes that are gone.

And our own sentences, dug out of what others have wrapped around them.
"""

import re
from typing import TypeVar

import torch

from eca_hub.errors import EcaHubError, InvalidConfig
from eca_hub.train.errors import ProcessLost, TrainingStopped

Kind = TypeVar("Kind", bound=BaseException)

TO_GO_ON = "What was saved before is whole; add --resume to go on."
_NO_MEMORY = r"can't allocate memory|Cannot allocate memory"


def as_sentence(error: BaseException) -> EcaHubError | None:
    """Tell what happened; None for what nobody has thought of, which deserves its traceback."""
    if own := _own_sentence(error):
        return own
    text = " ".join(str(error).split())
    if (missing := _in_chain(error, ModuleNotFoundError)) and missing is not error:
        # A logger or a plugin of a YAML file whose package is not here; Lightning names it and how to install it.
        return InvalidConfig(" ".join(str(missing).split())[:300])
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(_NO_MEMORY, text):
        return TrainingStopped(
            f"There is not enough memory: {text[:200] or 'an allocation failed'}.",
            hint="Lower --data.batch_size, raise --trainer.accumulate_grad_batches; --resume --allow_changes goes on.",
        )
    if worker := re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) (.*)", text):
        return ProcessLost(
            f"A data worker died: process {worker[1].strip()} {worker[2].rstrip('. ')[:160]}.", hint=TO_GO_ON
        )
    if re.search(r"gloo|nccl|Connection (closed|reset)|ProcessGroup|Broken pipe", text, re.IGNORECASE):
        return ProcessLost(
            f"Another process of this run is gone, so this one cannot go on: {text[:160]}", hint=TO_GO_ON
        )
    return None


def _own_sentence(error: BaseException) -> EcaHubError | None:
    """Find the mistake that we have told: the parser raises another error from it, a worker sends it as a traceback."""
    told = _in_chain(error, EcaHubError)
    if told and (sent := re.search(r"Original Traceback.*\n[\w.]+: (.*)$", str(told), re.DOTALL)):
        return type(told)(sent[1].strip())
    return told


def _in_chain(error: BaseException, kind: type[Kind]) -> Kind | None:
    """Find an error of a kind among those that led to this one."""
    each: BaseException | None = error
    while each is not None and not isinstance(each, kind):
        each = each.__cause__ or each.__context__
    return each
