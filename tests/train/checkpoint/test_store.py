"""Checkpoints on disk survive full disks and crashes, and damaged ones are never loaded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eca_hub import atomic
from eca_hub.atomic import CHECKSUM_SUFFIX, NotIntact, metadata_of, read_verified, write_with_checksum
from eca_hub.train.checkpoint.store import CheckpointStore, VerifiedCheckpointIO
from eca_hub.train.errors import CheckpointCorrupt, TrainingStopped
from eca_hub.train.run_folder import open_run_folder
from tests.train.runs import CONFIG

CHECKPOINT = {"weight": torch.arange(3), "eca_hub": {"step": 3}}


def test_a_file_is_read_back_with_its_metadata(tmp_path: Path) -> None:
    write_with_checksum(tmp_path / "a", b"content", {"step": 3})
    assert read_verified(tmp_path / "a") == b"content"
    assert metadata_of(tmp_path / "a")["step"] == 3


@pytest.mark.parametrize("damaged", [b"", b"conten", b"Content", b"contents"])
def test_a_damaged_file_is_refused(damaged: bytes, tmp_path: Path) -> None:
    write_with_checksum(tmp_path / "a", b"content", {})
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(NotIntact):
        read_verified(tmp_path / "a")
    with pytest.raises(CheckpointCorrupt):
        VerifiedCheckpointIO().load_checkpoint(tmp_path / "a")


def test_a_checkpoint_on_a_full_disk_is_one_sentence_and_the_one_before_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    VerifiedCheckpointIO().save_checkpoint(CHECKPOINT, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingStopped, match=r"No space left on device; [\d.]+ MiB are free, 0.0 MiB are needed"):
        VerifiedCheckpointIO().save_checkpoint({"eca_hub": {"step": 4}}, path)
    assert VerifiedCheckpointIO().load_checkpoint(path)["weight"].tolist() == [0, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "a.ckpt.sha256.json"}


MOMENTS = ("first byte", "half the bytes", "verification", "checksum", "rename", "after")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_crash_while_writing_leaves_the_checkpoint_before_or_the_complete_new_one(
    moment: str, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path)
    older, newer = store.path_at(1, 0, 1), store.path_at(2, 0, 2)
    write_with_checksum(older, b"older", {"step": 1})
    if (child := os.fork()) == 0:
        crash_at(moment)
        write_with_checksum(newer, b"newer content", {"step": 2})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    latest = store.latest_valid()
    assert latest is not None
    assert latest.path == (newer if moment == "after" else older)
    store.prune(None)
    names = {path.name.removesuffix(CHECKSUM_SUFFIX) for path in tmp_path.iterdir()}
    assert names == ({older.name, newer.name} if moment == "after" else {older.name})


def crash_at(moment: str) -> None:
    """Let this process be killed at a moment of its next `write_with_checksum`."""

    def die(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path: Path, content: bytes, **options: object) -> None:
        path.write_bytes(content[: len(content) // 2])
        die()

    renames = {"checksum": 1, "rename": 2, "after": 3}.get(moment, 0)
    real_rename = Path.replace

    def rename(path: Path, target: Path) -> Path:
        nonlocal renames
        renames -= 1
        if renames == 0:
            die()
        renamed = real_rename(path, target)
        if renames == 1 and moment == "after":
            die()
        return renamed

    # The process ends with it, so nothing is undone.
    patch = pytest.MonkeyPatch()
    if renames:
        patch.setattr(Path, "replace", rename)
        return
    name, replacement = {
        "first byte": ("write_synced", die),
        "half the bytes": ("write_synced", write_half),
        "verification": ("sha256_of", die),
    }[moment]
    patch.setattr(atomic, name, replacement)


def test_bytes_that_are_read_back_differently_are_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "sha256_of", lambda path: "0" * 64)
    with pytest.raises(TrainingStopped, match="the bytes read back differ from the bytes written"):
        VerifiedCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_best_weights_are_damaged_is_resumed_without_them(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    best = store.save_best({"weight": torch.ones(2)}, step=3)
    metadata = {"step": 4, "best": best, "best_score": 0.5}
    VerifiedCheckpointIO().save_checkpoint({"eca_hub": metadata}, store.path_at(4, 1, 0))
    latest = store.latest_valid()
    assert latest is not None
    assert latest.metadata["best_score"] == 0.5
    (tmp_path / best).write_bytes(b"cut")
    said: list[str] = []
    latest = store.latest_valid(said.append)
    assert latest is not None
    assert not {"best", "best_score"} & latest.metadata.keys()
    [sentence] = said
    assert "The best weights so far are lost" in sentence


def test_damaged_checkpoints_do_not_take_the_places_of_new_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    paths = [store.path_at(step, 0, step) for step in (1, 2, 3)]
    for path in paths:
        VerifiedCheckpointIO().save_checkpoint({"eca_hub": {}}, path)
    for path in paths[1:]:
        path.write_bytes(b"cut")
    open_run_folder(tmp_path, resume=True, overwrite=False).begin()
    assert sorted(store.folder.glob("step-*.ckpt")) == paths[:1]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
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
        pytest.skip("mounting is not permitted on this machine")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    if kind == "full":
        assert "No space left on device" in done.stderr
        assert "MiB are free" in done.stderr
        assert ".tmp" not in done.stdout
    else:
        assert "cannot be used: Read-only file system" in done.stderr
