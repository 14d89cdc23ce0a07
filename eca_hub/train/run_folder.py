"""The folder of a run: choose it, and check what it holds before anything is written."""

import datetime
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import is_file
from eca_hub.paths import expand_home
from eca_hub.train.callbacks.checkpointing import is_finished
from eca_hub.train.checkpoint.store import CheckpointStore, SavedCheckpoint
from eca_hub.train.lightning_internals import is_rank_zero

_RUN_DIR_VARIABLE = "ECA_RUN_DIR"
_EXTERNAL_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
_FILES_OF_A_RUN = ("bad_samples.csv", "metrics.csv", "result.json")
_OUTPUTS_OF_A_RUN = (
    "classes.csv",
    "confusion.png",
    "curves.png",
    "detections.json",
    "detections.png",
    "precision_recall.png",
    "predictions.csv",
    "predictions.json",
)
"""Tables and plots of names that a user's own files may have: removed only where a run was."""


@dataclass(frozen=True)
class RunFolder:
    """A folder that may be trained into."""

    path: Path
    checkpoints: CheckpointStore
    resumed: SavedCheckpoint | None
    """The checkpoint from which the run is resumed."""
    overwrites: bool = False
    """Whether a finished run is replaced."""

    def begin(self) -> None:
        """Lock the folder, and remove what is not resumed; on rank 0, after all checks.

        Raises:
            InvalidConfig: another process trains into it, or has since it was opened.
        """
        if not is_rank_zero():
            return
        _lock(self.checkpoints.folder)
        start = self.checkpoints.path_at(0, 0, 0)
        opened, latest = (saved.path if saved else start for saved in (self.resumed, self.checkpoints.latest_valid()))
        if opened != latest and not (self.overwrites and self.resumed is None):
            raise InvalidConfig(
                f"Another process has trained into {self.path} since this one has started.",
                hint="Give the command again.",
            )
        if self.resumed is not None:
            self.checkpoints.remove_newer(self.resumed.path, _print)
            return
        self.checkpoints.clear()
        was_run = self.overwrites or _has_results(self.path)
        for name in (*_FILES_OF_A_RUN, *(_OUTPUTS_OF_A_RUN if was_run else ())):
            (self.path / name).unlink(missing_ok=True)
        if self.overwrites:
            shutil.rmtree(self.path / "model", ignore_errors=True)


def open_run_folder(
    path: Path, *, resume: bool, overwrite: bool, max_epochs: int | None = None, max_steps: int = -1
) -> RunFolder:
    """Open the folder of a new run or of one to resume.

    Args:
        path: The folder.
        resume: Whether to continue the run in it; one that has finished, only if it is to be trained longer.
        overwrite: Whether to replace the run in it.
        max_epochs: Epochs of the run to start, -1 for no limit.
        max_steps: Steps of the run to start, -1 for no limit.

    Raises:
        InvalidConfig: it cannot be written, or holds a run and neither `resume` nor `overwrite` is given.
    """
    checkpoints = CheckpointStore(path / "checkpoints")
    has_package = is_file(path / "model" / "config.json")
    if has_package and not overwrite:
        latest = checkpoints.latest_valid() if resume else None
        if resume and latest is None:
            raise InvalidConfig(
                f"{path} holds a finished run without a valid checkpoint.",
                hint=f"Give another --run_dir and --model.from_pretrained {path} to train its weights longer.",
            )
        if latest is None or (is_finished(latest.metadata) and not _is_longer(latest, max_epochs, max_steps)):
            raise InvalidConfig(
                f"{path} holds a finished run.",
                hint="Give another --run_dir, --resume with a larger limit, such as --trainer.max_epochs, to train it "
                "longer, or --overwrite to replace it.",
            )
    try:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        for folder in (path, checkpoints.folder):
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InvalidConfig(
            f"The run folder {path} cannot be used: {error.strerror}.", hint="Give another --run_dir."
        ) from None
    resumed = None
    if resume:
        resumed = checkpoints.latest_valid(_print)
        _print(
            f"Resuming from {resumed.path.name}." if resumed else "No valid checkpoint: starting from the beginning."
        )
    elif is_rank_zero() and not overwrite:
        has_results = _has_results(path)
        if checkpoints.has_progress() or (has_results and checkpoints.latest_valid()):
            raise InvalidConfig(
                f"{path} holds an unfinished run.", hint="Add --resume to continue it, or --overwrite to replace it."
            )
        if has_results:
            raise InvalidConfig(
                f"{path} holds the results of a run without its checkpoints.",
                hint="Give another --run_dir, or --overwrite to replace them.",
            )
    for leftover in path.glob("hpc_ckpt_*.ckpt"):
        raise InvalidConfig(
            f"{leftover} was written by Lightning's own SLURM requeue, and Lightning would resume from it.",
            hint=f"Remove it; --resume continues from {checkpoints.folder}.",
        )
    return RunFolder(path, checkpoints, resumed, overwrites=overwrite)


def _has_results(path: Path) -> bool:
    return any((path / name).exists() for name in ("metrics.csv", "result.json"))


def _lock(checkpoints: Path) -> None:
    """Take the lock of a folder of checkpoints; the kernel releases it when this process ends.

    Raises:
        InvalidConfig: another process has it.
    """
    descriptor = os.open(checkpoints / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise InvalidConfig(
            f"Another process trains into {checkpoints.parent}.", hint="Give another --run_dir."
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)


def _is_longer(finished: SavedCheckpoint, max_epochs: int | None, max_steps: int) -> bool:
    """Whether the limits allow more training than a finished run has had.

    One that was stopped early is trained longer with other limits only.
    """
    fingerprint = finished.metadata.get("fingerprint", {})
    limits = (fingerprint.get("trainer.max_epochs"), fingerprint.get("trainer.max_steps"))
    if finished.metadata.get("has_stopped_early") and limits == (max_epochs, max_steps):
        return False
    is_more_epochs = max_epochs is None or max_epochs < 0 or max_epochs > finished.metadata["position"]["epoch"]
    return is_more_epochs and (max_steps < 0 or max_steps > finished.metadata["step"])


def choose_run_dir(given: str | None, model: str) -> Path:
    """Return the given folder, or a new one in `runs/`; the processes that Lightning starts inherit its name.

    Args:
        given: --run_dir.
        model: Last part of the name of a new folder.

    Raises:
        InvalidConfig: an external launcher started this process, and no folder is given.
    """
    if not given and any(name in os.environ for name in _EXTERNAL_LAUNCHERS):
        raise InvalidConfig("Processes of torchrun or srun cannot agree on a new run folder.", hint="Give --run_dir.")
    now = datetime.datetime.now().astimezone()
    chosen = given or os.environ.get(_RUN_DIR_VARIABLE) or f"runs/{now:%Y-%m-%d_%H%M%S}_{model}"
    if not given and "LOCAL_RANK" not in os.environ:
        os.environ[_RUN_DIR_VARIABLE] = chosen
    return expand_home(chosen)


def _print(sentence: str) -> None:
    if is_rank_zero():
        print(sentence, flush=True)
