"""Exceptions of other libraries become one sentence; unexpected ones keep their traceback."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper

from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.train.errors import TrainingStopped, user_message_for


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
        (
            RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
            "Another process of this run has ended",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "Out of memory: CUDA"),
        (MemoryError(), "Out of memory: an allocation failed"),
    ],
)
def test_a_failure_of_the_system_is_one_sentence(error: BaseException, sentence: str) -> None:
    message = user_message_for(error)
    assert message is not None
    assert sentence in str(message)


def test_our_own_error_is_found_inside_the_errors_of_others() -> None:
    message = InvalidConfig("There is no folder x.", hint="Give --data.root.")
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = message
    assert user_message_for(wrapped) is message


def test_a_logger_whose_package_is_missing_is_a_sentence() -> None:
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met.\nTry: pip install wandb")
    message = user_message_for(wrapped)
    assert str(message) == "Requirement 'wandb>=0.12.10' not met. Try: pip install wandb"
    # An import of our own has a better message, which names the extra.
    assert user_message_for(ModuleNotFoundError("No module named 'sklearn'", name="sklearn")) is None


def test_an_error_of_a_worker_is_shown_without_its_traceback() -> None:
    try:
        raise TrainingStopped("Every image of a batch is broken.")
    except TrainingStopped:
        wrapped: Any = ExceptionWrapper(where="in DataLoader worker process 0")  # type: ignore[no-untyped-call]
    with pytest.raises(TrainingStopped) as caught:
        wrapped.reraise()
    assert "Traceback" in str(caught.value)
    assert str(user_message_for(caught.value)) == "Every image of a batch is broken."


@pytest.mark.parametrize(
    ("root", "sentence"),
    [("nowhere", "There is no folder"), (".", "has no folder train; it needs train/CLASS")],
)
def test_data_that_cannot_be_opened_are_one_sentence(
    root: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", "ImageFolderData", "--data.root", str(tmp_path / root), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *options]) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert len(output.splitlines()) == 1


def test_an_unexpected_error_keeps_its_traceback() -> None:
    assert user_message_for(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_that_the_system_does_not_let_write_is_one_sentence_with_its_reason(number: int) -> None:
    message = user_message_for(OSError(number, os.strerror(number), "run/metrics.csv"))
    assert str(message).startswith(f"run/metrics.csv cannot be used: {os.strerror(number)}. Make room")
    assert user_message_for(OSError(number, os.strerror(number))) is None
