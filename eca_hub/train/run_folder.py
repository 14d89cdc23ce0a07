"""The folder of a run: which one it is, what it holds already, and whether that may be written over.

Knows nothing of training.
"""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.store import CheckpointFolder, Saved
from eca_hub.train.say import say

_VARIABLE = "ECA_RUN_DIR"
_STARTED_FROM_OUTSIDE = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
_OF_A_RUN_BEFORE = ("metrics.csv", "bad_samples.csv", "result.json")


@dataclass(frozen=True)
class RunFolder:
    """A folder that may be trained into."""

    path: Path
    checkpoints: CheckpointFolder
    resumed: Saved | None
    """The checkpoint that the run goes on from, if it does."""


def open_to_train(path: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    """Look at what is in the folder: nothing, a run to go on with, or one that must not be lost.

    Raises:
        InvalidConfig: it cannot be used, or holds a run and nobody said what is to become of it.
    """
    if (path / "model" / "config.json").exists() and not overwrite:
        raise InvalidConfig(
            f"{path} holds a finished run.", hint="Give another --run_dir, or --overwrite to replace it."
        )
    checkpoints = CheckpointFolder(path / "checkpoints")
    try:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(
            f"The run folder {path} cannot be used: {error.strerror}.", hint="Give another --run_dir."
        ) from None
    resumed = None
    if resume:
        resumed = checkpoints.newest_whole(_say)
        _say(f"Going on from {resumed.path.name}." if resumed else "No whole checkpoint: starting anew.")
    elif checkpoints.has_progress() and _is_first() and not overwrite:
        raise InvalidConfig(
            f"{path} holds an unfinished run.", hint="Add --resume to go on, or --overwrite to start anew."
        )
    if resumed is None and _is_first():
        checkpoints.clear()
        for name in _OF_A_RUN_BEFORE:
            (path / name).unlink(missing_ok=True)
    return RunFolder(path, checkpoints, resumed)


def chosen_path(given: str | None, model: str) -> Path:
    """Take the folder that was given, or name one; processes that Lightning starts take their starter's.

    Args:
        given: What was typed.
        model: What the name of a new one ends with.

    Raises:
        InvalidConfig: processes that do not know each other were given none.
    """
    if not given and any(name in os.environ for name in _STARTED_FROM_OUTSIDE):
        raise InvalidConfig("Processes that a launcher starts cannot agree on a new folder.", hint="Give --run_dir.")
    now = datetime.datetime.now().astimezone()
    chosen = given or os.environ.get(_VARIABLE) or f"runs/{now:%Y-%m-%d_%H%M%S}_{model}"
    if not given and "LOCAL_RANK" not in os.environ:
        os.environ[_VARIABLE] = chosen
    return Path(chosen)


def _is_first() -> bool:
    """Whether this is the process that writes."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def _say(sentence: str) -> None:
    if _is_first():
        say(sentence)
