"""Batches of data workers need shared memory: too little is refused before the start."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ImageConfig
from eca_hub.train.data import CocoData, SyntheticData
from tests.train.data.detection_files import write_coco

MIB = 2**20
IMAGE = ImageConfig(height_px=256, width_px=512, in_chans=1)
"""One of 128 KiB."""


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr("eca_hub.train.data.loader._SHARED_MEMORY", Path("/"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=num_bytes))


def test_workers_whose_batches_do_not_fit_into_shared_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, 64 * MIB)
    data = SyntheticData(num_train=2000, num_eval=300, image=IMAGE, batch_size=64, num_workers=4)
    data.check_shared_memory("train", 1)
    with pytest.raises(InvalidConfig) as caught:
        data.check_shared_memory("train", 2)
    assert str(caught.value) == (
        "The batches that 4 data workers prepare ahead take 128 MiB or more of shared memory, and / has 64 MiB free. "
        "Lower --data.num_workers, or start the container with docker run --shm-size 1g."
    )
    data.check_shared_memory("test", 1)


def test_only_images_that_there_are_take_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, MIB)
    SyntheticData(num_train=8, image=IMAGE, batch_size=64, num_workers=4).check_shared_memory("train", 1)


def test_without_workers_no_shared_memory_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, 0)
    SyntheticData(num_train=2000, image=IMAGE, batch_size=64).check_shared_memory("train", 1)


def test_detectors_need_shared_memory_for_their_smallest_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CocoData(root=str(write_coco(tmp_path)), batch_size=1, num_workers=1)
    smallest = sorted(3 * image.height * image.width for image in data.split("train").images)[:2]
    leave_free(monkeypatch, sum(smallest))
    data.check_shared_memory("train", 1)
    leave_free(monkeypatch, sum(smallest) - 1)
    with pytest.raises(InvalidConfig, match="shared memory"):
        data.check_shared_memory("train", 1)
