"""Errors of training, and the translation of other libraries' exceptions into one sentence for the user."""

import errno
import re
from typing import TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from eca_hub.errors import EcaHubError, InvalidConfig

Kind = TypeVar("Kind", bound=BaseException)

RESUME_HINT = "The last checkpoint is intact; add --resume to continue from it."
_OUT_OF_MEMORY = r"can't allocate memory|Cannot allocate memory"
_REFUSED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class TrainingStopped(EcaHubError):
    """Training cannot continue: the loss is not finite, the disk is full, too many images are broken."""

    code = "training_stopped"


class ProcessLost(TrainingStopped):
    """A data worker or another training process has died. Not the user's mistake; --resume continues."""

    code = "process_lost"
    exit_code = 1


class CheckpointCorrupt(EcaHubError):
    """The bytes of a checkpoint differ from those that were written."""

    code = "checkpoint_corrupt"


def user_message_for(error: BaseException) -> EcaHubError | None:
    """Return the error to show to the user; None for an unexpected exception, which keeps its traceback."""
    if own := _own_error(error):
        return own
    text = " ".join(str(error).split())
    if misuse := _in_chain(error, MisconfigurationException):
        # An option of the Trainer that Lightning refuses; its first sentence says which.
        message = " ".join(str(misuse).split())[:300]
        if no_device := re.match(r"No supported (\w+) backend found", message):
            return InvalidConfig(
                f"--trainer.accelerator {no_device[1]}: torch finds no such device on this machine.",
                hint="Leave the option out, or give --trainer.accelerator cpu.",
            )
        return InvalidConfig(message)
    if isinstance(error, TypeError) and "`devices` selected with `CPUAccelerator`" in text:
        return InvalidConfig("--trainer.devices must be 1 or more where processes run on the CPU.")
    if (missing := _in_chain(error, ModuleNotFoundError)) and missing is not error:
        # A logger or plugin named in the configuration is not installed; Lightning's message says how to install it.
        return InvalidConfig(" ".join(str(missing).split())[:300])
    if isinstance(error, OSError) and error.filename is not None and error.errno in _REFUSED_WRITES:
        return TrainingStopped(
            f"{error.filename} cannot be used: {error.strerror}.",
            hint="Make room for it or allow it, and add --resume to continue.",
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(_OUT_OF_MEMORY, text):
        return TrainingStopped(
            f"Out of memory: {text[:200] or 'an allocation failed'}.",
            hint="Lower --data.batch_size and raise --trainer.accumulate_grad_batches; --resume --allow_changes "
            "continues.",
        )
    if worker := re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) (.*)", text):
        return ProcessLost(
            f"A data worker died: process {worker[1].strip()} {worker[2].rstrip('. ')[:160]}.", hint=RESUME_HINT
        )
    if re.search(r"gloo|nccl|Connection (closed|reset)|ProcessGroup|Broken pipe", text, re.IGNORECASE):
        return ProcessLost(f"Another process of this run has ended: {text[:160]}", hint=RESUME_HINT)
    return None


def refused_option(error: BaseException) -> InvalidConfig:
    """Return the message for a value that Lightning's Trainer does not accept: the text of its error, on one line."""
    sentence = " ".join(str(error).split())[:300]
    return InvalidConfig(f"The Trainer refuses an option of --trainer: {sentence or type(error).__name__}")


def _own_error(error: BaseException) -> EcaHubError | None:
    """Find an EcaHubError in the chain: jsonargparse wraps it, and a data worker sends it inside a traceback text."""
    own = _in_chain(error, EcaHubError)
    if own and (sent := re.search(r"Original Traceback.*\n[\w.]+: (.*)$", str(own), re.DOTALL)):
        return type(own)(sent[1].strip())
    return own


def _in_chain(error: BaseException, kind: type[Kind]) -> Kind | None:
    """Find an error of a class among the causes of this one."""
    each: BaseException | None = error
    while each is not None and not isinstance(each, kind):
        each = each.__cause__ or each.__context__
    return each
