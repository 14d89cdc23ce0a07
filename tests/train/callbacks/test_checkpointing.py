"""The best weights of a run that is resumed with changes."""

from pathlib import Path
from typing import Any

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.callbacks.checkpointing import CheckpointConfig, ResumableCheckpoint
from eca_hub.train.checkpoint.store import CheckpointStore, SavedCheckpoint
from eca_hub.train.distributed.signals import StopRequest

SETTINGS = {"data set": "a", "model.detector": "retinanet", "model.min_side_px": 800, "model.optim.lr": 0.1}


def resumed_with(
    folder: Path, changes: dict[str, Any], *, allow_changes: bool = True, earlier: dict[str, Any] | None = None
) -> ResumableCheckpoint:
    fingerprint = SETTINGS | (earlier or {})
    metadata = {"fingerprint": fingerprint, "position": {"epoch": 1, "batch": 0}, "step": 4, "best": "best.safetensors"}
    return ResumableCheckpoint(
        CheckpointStore(folder),
        CheckpointConfig(),
        StopRequest(),
        SETTINGS | changes,
        SavedCheckpoint(folder / "newest.ckpt", metadata),
        allow_changes=allow_changes,
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model.detector", "faster_rcnn"),
        ("model.min_side_px", 600),
        ("model.anchor_sizes_px", [16]),
        ("model.head_norm", "group"),
        ("model.backbone", "resnet18"),
        ("model.attention_args.gamma", 4),
        ("data.image.crop", 0.9),
        ("data.bit_depth", 12),
        ("trainer.limit_val_batches", 2),
    ],
)
def test_the_best_weights_of_another_detector_or_validation_are_forgotten(
    option: str, value: object, tmp_path: Path
) -> None:
    assert resumed_with(tmp_path, {option: value}).best is None


@pytest.mark.parametrize(("option", "value"), [("model.optim.lr", 0.01), ("model.backbone_from", "a/b")])
def test_the_best_weights_are_kept_where_only_training_changes(option: str, value: object, tmp_path: Path) -> None:
    assert resumed_with(tmp_path, {option: value}).best == "best.safetensors"


def test_a_checkpoint_without_a_setting_that_was_added_later_is_resumed_unchanged(tmp_path: Path) -> None:
    changed = {"trainer.check_val_every_n_epoch": 2}
    assert resumed_with(tmp_path, changed, allow_changes=False).best == "best.safetensors"
    with pytest.raises(InvalidConfig, match="check_val_every_n_epoch was 1 and is 2"):
        resumed_with(tmp_path, changed, allow_changes=False, earlier={"trainer.check_val_every_n_epoch": 1})
