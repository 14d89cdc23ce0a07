"""What goes wrong under a run is said in a sentence, and nothing that was saved is lost."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper

from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint import whole_files
from eca_hub.train.checkpoint.store import CheckpointFolder
from eca_hub.train.checkpoint.whole_files import SIDECAR, read_whole, write_whole
from eca_hub.train.data.dataset import Batch
from eca_hub.train.errors import CheckpointCorrupt, TrainingStopped
from eca_hub.train.failures import as_sentence
from eca_hub.train.module import ImageClassifier
from tests.train.datasets import png
from tests.train.runs import CONFIG, checkpoints, fit


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_a_loss_that_is_no_number_stops_with_step_rate_and_samples(
    accelerator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ImageClassifier.training_step
    calls = 0

    def spoilt(self: ImageClassifier, batch: object, batch_index: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(self, batch, batch_index) * (float("nan") if calls == 6 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageClassifier, "training_step", spoilt)
    assert fit(tmp_path / "run", "--trainer.accelerator", accelerator) == 2
    said = capsys.readouterr().err
    assert "The loss is nan at step 6, epoch 2, batch 2, learning rate 0.04" in said
    assert "training samples " in said
    assert not (tmp_path / "run" / "model").exists()
    assert checkpoints(tmp_path / "run")[-1].name.startswith("step-000000004-")


def test_weights_whose_validation_is_no_number_are_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ImageClassifier._measure

    def spoilt(self: ImageClassifier, batch: Batch, split: str) -> None:
        real(self, batch, split)
        if split == "val" and self.current_epoch == 2:
            self.metrics_for("val").loss_sum.fill_(float("nan"))
            self.metrics_for("val").confusion_KK.fill_diagonal_(1000)

    monkeypatch.setattr(ImageClassifier, "_measure", spoilt)
    assert fit(tmp_path / "run") == 2
    assert "metrics.val.loss_sum holds NaN or infinity; nothing was saved" in capsys.readouterr().err
    assert whole_files.facts_of(checkpoints(tmp_path / "run")[-1])["best_epoch"] < 3
    assert not (tmp_path / "run" / "model").exists()


def test_broken_pictures_are_named_once_and_one_too_many_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for picture in range(8):
                (tmp_path / "set" / split / label / f"{picture}.png").write_bytes(png(number * 90 + picture))
    (tmp_path / "set" / "train" / "cat" / "3.png").write_bytes(b"no picture")
    config = "\n".join(
        [
            "model: {architecture: resnet20}",
            "data:",
            "  class_path: ImageFolderData",
            f"  init_args: {{root: {tmp_path / 'set'}, batch_size: 8, image: {{height_px: 8, width_px: 8}}}}",
            "trainer: {max_epochs: 2, accelerator: cpu, devices: 1}",
        ]
    )
    assert fit(tmp_path / "strict", config=config) == 2
    assert "Broken pictures: 1, and --data.max_bad_samples allows 0." in capsys.readouterr().err
    assert fit(tmp_path / "lenient", "--data.max_bad_samples", "1", config=config) == 0
    assert capsys.readouterr().out.count("Left out ") == 1
    with (tmp_path / "lenient" / "bad_samples.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["file"].endswith("train/cat/3.png")


# files that are whole or not there


def test_a_whole_file_is_read_back(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"content", {"step": 3})
    assert read_whole(tmp_path / "a") == b"content"
    assert whole_files.facts_of(tmp_path / "a")["step"] == 3


@pytest.mark.parametrize("damaged", [b"", b"conten", b"Content", b"contents"])
def test_a_damaged_file_is_refused(damaged: bytes, tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"content", {})
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(CheckpointCorrupt):
        read_whole(tmp_path / "a")


def test_a_full_disk_is_said_and_the_file_before_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"content", {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingStopped, match=r"No space left on device; [\d.]+ MiB are free, 0.0 MiB are needed"):
        write_whole(tmp_path / "a", b"another", {})
    assert read_whole(tmp_path / "a") == b"content"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.sha256.json"}


@pytest.mark.parametrize("moment", ["first byte", "half the bytes", "hash", "name", "after"])
def test_a_crash_while_writing_leaves_the_checkpoint_before_or_the_whole_new_one(moment: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    older, newer = folder.path_at(1, 0, 1), folder.path_at(2, 0, 2)
    write_whole(older, b"older", {"step": 1})
    if (child := os.fork()) == 0:
        crash_at(moment)
        write_whole(newer, b"newer content", {"step": 2})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = folder.newest_whole()
    assert found is not None
    assert found.path == (newer if moment == "after" else older)
    folder.tidy(None)
    names = {path.name.removesuffix(SIDECAR) for path in tmp_path.iterdir()}
    assert names == ({older.name, newer.name} if moment == "after" else {older.name})


def crash_at(moment: str) -> None:
    """Let this process be killed at a moment of its next `write_whole`."""

    def die(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        die()

    real, calls = Path.replace, iter((False, True))

    def replace_once(path: Path, target: Path) -> Path:
        if next(calls):
            die()
        return real(path, target)

    # The process ends with it, so nothing is undone.
    patch = pytest.MonkeyPatch()
    if moment == "name":
        patch.setattr(Path, "replace", replace_once)
        return
    name, instead = {
        "first byte": ("write_through", die),
        "half the bytes": ("write_through", write_half),
        "hash": ("_hash_of", die),
        "after": ("sync_folder", die),
    }[moment]
    patch.setattr(whole_files, name, instead)


def test_what_is_read_back_otherwise_than_written_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_files, "_hash_of", lambda path: "0" * 64)
    with pytest.raises(TrainingStopped, match="what was read back is not what was written"):
        write_whole(tmp_path / "a", b"content", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk and becoming nobody take root")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_run_on_a_bad_disk_ends_with_a_sentence(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "2m" if kind == "full" else "64m,ro"
    fit_command = f"{sys.executable} -m eca_hub fit -c {tmp_path}/config.yaml --run_dir {disk}/run"
    script = (
        f"mount -t tmpfs -o size={size} none {disk} && {fit_command}; code=$?; ls {disk}/run/checkpoints; exit $code"
    )
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    if kind == "full":
        assert "No space left on device" in done.stderr
        assert "MiB are free" in done.stderr
        assert ".part" not in done.stdout
    else:
        assert "cannot be used: Read-only file system" in done.stderr


# what others raise


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed."),
            "A data worker died: process 77 is killed",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 77, 78) exited unexpectedly"),
            "A data worker died: process 77, 78 exited unexpectedly.",
        ),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "Another process of this run is gone"),
        (torch.OutOfMemoryError("CUDA out of memory."), "There is not enough memory"),
        (MemoryError(), "There is not enough memory: an allocation failed"),
    ],
)
def test_what_breaks_under_a_run_is_a_sentence(error: BaseException, sentence: str) -> None:
    told = as_sentence(error)
    assert told is not None
    assert sentence in str(told)


def test_our_own_sentence_is_found_inside_the_errors_of_others() -> None:
    told = InvalidConfig("There is no folder x.", hint="Give --data.root.")
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = told
    assert as_sentence(wrapped) is told


def test_a_logger_whose_package_is_missing_is_a_sentence() -> None:
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met.\nTry: pip install wandb")
    told = as_sentence(wrapped)
    assert str(told) == "Requirement 'wandb>=0.12.10' not met. Try: pip install wandb"
    # What we import ourselves has a better sentence: the extra that brings it.
    assert as_sentence(ModuleNotFoundError("No module named 'sklearn'", name="sklearn")) is None


def test_a_sentence_from_a_worker_comes_without_its_traceback() -> None:
    try:
        raise TrainingStopped("Every picture of a batch is broken.")
    except TrainingStopped:
        wrapped: Any = ExceptionWrapper(where="in DataLoader worker process 0")  # type: ignore[no-untyped-call]
    with pytest.raises(TrainingStopped) as caught:
        wrapped.reraise()
    assert "Traceback" in str(caught.value)
    assert str(as_sentence(caught.value)) == "Every picture of a batch is broken."


@pytest.mark.parametrize(
    ("root", "sentence"),
    [("nowhere", "There is no folder"), (".", "has no folder train; it needs train/CLASS")],
)
def test_data_that_cannot_be_opened_are_one_sentence_of_the_command(
    root: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", "ImageFolderData", "--data.root", str(tmp_path / root), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_what_nobody_thought_of_keeps_its_traceback() -> None:
    assert as_sentence(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
