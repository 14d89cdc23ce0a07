"""The folder of a run: the names that can be given for it."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.store import CheckpointStore, VerifiedCheckpointIO
from eca_hub.train.run_folder import choose_run_dir, open_run_folder


def save(run_dir: Path, step: int, epoch: int) -> Path:
    """Write a checkpoint as a run does."""
    path = CheckpointStore(run_dir / "checkpoints").path_at(step, epoch, 0)
    path.parent.mkdir(exist_ok=True)
    VerifiedCheckpointIO().save_checkpoint({"eca_hub": {"step": step, "position": {"epoch": epoch, "batch": 0}}}, path)
    return path


def test_a_run_folder_in_the_home_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a YAML file, in which no shell expands it."""
    monkeypatch.setenv("HOME", "/home/alice")
    assert choose_run_dir("~/run", "eca") == Path("/home/alice/run")


def test_a_name_that_no_run_folder_can_have_is_refused_in_a_sentence() -> None:
    with pytest.raises(InvalidConfig, match=r"cannot be used: File name too long\. Give another --run_dir\."):
        open_run_folder(Path("x" * 300), resume=False, overwrite=False)


@pytest.mark.parametrize("options", [{"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}])
@pytest.mark.parametrize("folder", [".", "checkpoints"])
def test_a_run_in_which_no_file_can_be_written_is_refused_before_any_work(
    options: dict[str, bool], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4, 1)
    open_file = tempfile.TemporaryFile

    def refuse(*, dir: Path) -> Any:
        if dir == tmp_path / folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
        return open_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InvalidConfig, match=r"cannot be used: Permission denied\. Give another --run_dir\."):
        open_run_folder(tmp_path, **options)


def test_a_run_to_evaluate_whose_name_no_folder_can_have_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--run_dir", "x" * 300]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert "config.yaml, which names the data of the run, does not exist." in sentence


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_run_that_another_process_has_trained_meanwhile_is_left_as_it_is(is_resumed: bool, tmp_path: Path) -> None:
    kept = [save(tmp_path, 4, 1)] if is_resumed else []
    folder = open_run_folder(tmp_path, resume=is_resumed, overwrite=False)
    kept.append(save(tmp_path, 8, 2))
    with pytest.raises(InvalidConfig, match=r"Another process has trained into .* Give the command again\."):
        folder.begin()
    assert all(path.exists() for path in kept)


def test_only_checkpoints_that_are_damaged_are_removed_before_a_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = save(tmp_path, 4, 1), save(tmp_path, 8, 2)
    newer.write_bytes(b"")
    open_run_folder(tmp_path, resume=True, overwrite=False).begin()
    assert (older.exists(), newer.exists()) == (True, False)
    assert f"Removed {newer.name}, which is damaged." in capsys.readouterr().out


def test_results_beside_the_checkpoint_before_the_first_step_are_those_of_a_run_to_resume(tmp_path: Path) -> None:
    save(tmp_path, 0, 0)
    (tmp_path / "metrics.csv").write_text("epoch")
    with pytest.raises(InvalidConfig, match=r"holds an unfinished run\. Add --resume"):
        open_run_folder(tmp_path, resume=False, overwrite=False)
