"""Batches of images with objects: flips and mosaics keep boxes on their objects, randomness depends on the seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import detection_dataset
from eca_hub.train.data.coco_data import CocoData
from eca_hub.train.data.detection_dataset import (
    AspectRatioBatchSampler,
    DetectionAugmentConfig,
    flip,
    mosaic,
    rasterize,
)
from eca_hub.train.data.sampler import BatchIndex, RankShard
from tests.train.data.detection_files import SIZES, coco_document, write_coco


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def plain(root: Path, **options: Any) -> CocoData:
    return CocoData(str(root), augment=DetectionAugmentConfig(flip_prob=0), **options)


def check_colors(image_3HW: Tensor, target: dict[str, Tensor]) -> None:
    """The last object drawn is whole: its box holds its own color, blue for bar (0)."""
    for box, label in zip(target["boxes"], target["labels"], strict=True):
        if label == 0:
            x1, y1, x2, y2 = box.round().int().tolist()
            inside = image_3HW[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean((1, 2))
            assert inside[2] > 200
            assert inside[0] < 80


def test_masks_cover_their_boxes(root: Path) -> None:
    batch = plain(root, with_masks=True).dataset("train")[BatchIndex(0, [0, 5])]
    first, empty = batch.targets
    assert first["masks"].shape == (2, 48, 64)
    assert first["masks"].sum((1, 2)).tolist() == [16 * 12, 16 * 13]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 64, 64)
    assert batch.indices.tolist() == [0, 5]


def test_a_flip_takes_boxes_and_masks_along(root: Path) -> None:
    batch = plain(root, with_masks=True).dataset("train")[BatchIndex(0, [0])]
    image, target = flip(batch.images[0], batch.targets[0])
    check_colors(image, target)
    for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        assert mask[y1:y2, x1:x2].all()
        assert mask.sum() == (x2 - x1) * (y2 - y1)
    back_image, back = flip(image, target)
    assert torch.equal(back_image, batch.images[0])
    assert torch.equal(back["boxes"], batch.targets[0]["boxes"])


def test_a_mosaic_keeps_boxes_and_masks_on_their_objects(root: Path) -> None:
    dataset = plain(root, with_masks=True).dataset("train")
    batch = dataset[BatchIndex(0, [0, 1, 3, 4])]
    image, target = mosaic(list(zip(batch.images, batch.targets, strict=True)), 0.5, 0.5)
    assert image.shape == batch.images[0].shape
    assert 4 < len(target["boxes"]) <= 8
    assert target["masks"].shape == (len(target["boxes"]), 48, 64)
    assert bool((target["boxes"] >= 0).all())
    assert bool((target["boxes"][:, 2] <= 64).all())
    for mask, box in zip(target["masks"], target["boxes"], strict=True):
        x1, y1, x2, y2 = box.tolist()
        assert float(mask.sum()) == pytest.approx((x2 - x1) * (y2 - y1), rel=0.4)


def test_random_numbers_depend_on_seed_epoch_and_index_only(root: Path) -> None:
    config = DetectionAugmentConfig(flip_prob=0.5, mosaic_prob=0.5)
    one, two = (CocoData(str(root), augment=config).dataset("train") for _ in range(2))
    together, alone = one[BatchIndex(3, [0, 1, 2])], two[BatchIndex(3, [2])]
    assert torch.equal(together.images[2], alone.images[0])
    assert torch.equal(together.targets[2]["boxes"], alone.targets[0]["boxes"])
    epochs = [one[BatchIndex(epoch, [0])].images[0] for epoch in range(12)]
    assert len({epoch.sum().item() for epoch in epochs}) > 2


def test_more_objects_than_allowed_are_drawn_at_random(root: Path) -> None:
    dataset = plain(root, max_objects=1).dataset("train")
    drawn = [dataset[BatchIndex(epoch, [0])].targets[0]["labels"].tolist() for epoch in range(12)]
    assert {tuple(labels) for labels in drawn} == {(0,), (1,)}
    assert len(plain(root, max_objects=1).dataset("val")[BatchIndex(0, [0])].targets[0]["labels"]) == 2


def test_only_the_masks_of_drawn_objects_are_rasterized(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def draw(mask: Any, height: int, width: int) -> np.ndarray:
        drawn.append(mask)
        return np.ones((height, width), np.uint8)

    monkeypatch.setattr(detection_dataset, "rasterize", draw)
    dataset = plain(root, max_objects=1, with_masks=True).dataset("train")
    target = dataset[BatchIndex(0, [0])].targets[0]
    assert len(drawn) == len(target["masks"]) == 1


def test_an_image_of_one_column_is_in_no_mosaic_of_its_own(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][0].update(width=1)
    document["annotations"] = [each for each in document["annotations"] if each["image_id"] != 1000]
    root = write_coco(tmp_path, document)
    dataset = CocoData(str(root), augment=DetectionAugmentConfig(mosaic_prob=1.0)).dataset("train")
    assert dataset[BatchIndex(0, [0])].images[0].shape == (3, 48, 1)
    assert dataset[BatchIndex(0, [1])].images[0].shape == (3, 64, 48)


@pytest.mark.parametrize("center", [(0.01, 0.01), (0.99, 0.99)])
def test_every_quarter_of_a_mosaic_has_pixels(center: tuple[float, float]) -> None:
    sample = (torch.zeros(3, 2, 2, dtype=torch.uint8), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)})
    image, _ = mosaic([sample] * 4, *center)
    assert image.tolist() == torch.zeros(3, 2, 2, dtype=torch.uint8).tolist()


def test_a_broken_image_is_named_and_left_out(root: Path, tmp_path: Path) -> None:
    copy = write_coco(tmp_path)
    data = plain(copy)
    dataset = data.dataset("train")
    (copy / "train2017/1.png").write_bytes(b"no image")
    (copy / "train2017/2.png").unlink()
    batch = dataset[BatchIndex(0, [0, 1, 2])]
    assert batch.indices.tolist() == [0]
    assert [Path(bad.name).name for bad in batch.bad_samples] == ["1.png", "2.png"]


def test_a_broken_image_of_a_mosaic_is_named_and_not_the_first_one(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    dataset = CocoData(str(root), augment=DetectionAugmentConfig(mosaic_prob=1.0)).dataset("train")
    (root / "train2017/1.png").write_bytes(b"no image")
    batch = dataset[BatchIndex(0, list(range(6)))]
    assert {Path(bad.name).name for bad in batch.bad_samples} == {"1.png"}


def test_files_without_the_header_of_an_image_are_counted_before_training(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (root / "train2017/1.png").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    sentence = (
        r"Broken images: 1, and --data.max_bad_samples allows 0; the first: .*1.png: a pointer of Git LFS; `git lfs"
    )
    with pytest.raises(InvalidConfig, match=sentence):
        plain(root).check()
    plain(root, max_bad_samples=1).check()


def test_images_of_12_bits_use_the_whole_range_where_the_data_say_so(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    width, height = SIZES[0]
    samples_HW = np.full((height, width), 4095, np.uint16)
    Image.fromarray(samples_HW).save(root / "train2017/0.png")
    for bit_depth, white in ((12, 255), (None, 15)):
        image = plain(root, bit_depth=bit_depth).dataset("train")[BatchIndex(0, [0])].images[0]
        assert image.shape == (3, height, width)
        assert set(image.flatten().tolist()) == {white}


def test_batches_hold_images_of_one_kind_and_an_epoch_every_image_once() -> None:
    is_upright = [index % 3 == 0 for index in range(31)]
    position = (4, 0)
    sampler = AspectRatioBatchSampler(is_upright, 4, 0, RankShard(), lambda: position)
    batches = [batch.indices for batch in sampler]
    assert len(batches) == len(sampler) == 7
    assert len({index for batch in batches for index in batch}) == 28
    mixed = [batch for batch in batches if len({is_upright[index] for index in batch}) == 2]
    assert len(mixed) <= 1
    position = (4, 3)
    assert [batch.indices for batch in sampler] == batches[3:]


def test_two_processes_share_the_batches_of_one() -> None:
    is_upright = [index % 2 == 0 for index in range(24)]
    whole = AspectRatioBatchSampler(is_upright, 4, 0, RankShard(), lambda: (0, 0))
    shares = [AspectRatioBatchSampler(is_upright, 2, 0, RankShard(rank, 2), lambda: (0, 0)) for rank in (0, 1)]
    joined = [first.indices + second.indices for first, second in zip(*shares, strict=True)]
    assert joined == [batch.indices for batch in whole]


def test_run_length_code_and_polygons_draw_the_same_mask() -> None:
    width, height = SIZES[0]
    polygon = rasterize([[0, 0, 2, 0, 2, height, 0, height]], height, width)
    runs = rasterize({"size": [height, width], "counts": [0, 2 * height, height * (width - 2)]}, height, width)
    assert np.array_equal(polygon, runs)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"max_objects": 0}, {"num_workers": -1}, {"smallest_images": -1}, {"bit_depth": 17}]
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], root: Path) -> None:
    with pytest.raises(InvalidConfig, match=f"data.{next(iter(options))} is"):
        CocoData(str(root), **options)
    with pytest.raises(InvalidConfig, match="flip_prob"):
        DetectionAugmentConfig(flip_prob=2)
