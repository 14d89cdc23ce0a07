"""Data: splits, batches, preprocessing, broken files, and mistakes told in one sentence."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from eca_hub.errors import EcaHubError, InvalidConfig
from eca_hub.images import EvalTransform, decode_image
from eca_hub.models.config import ImageConfig
from eca_hub.train.data import AugmentConfig, DigitsData, ImageFolderData, ParquetData, SyntheticData
from eca_hub.train.data.augment import Augment, random_box
from eca_hub.train.data.batches import BatchKey, EvalBatches, Share, TrainBatches
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.seeds import derive_seed, uniforms
from tests.conftest import make_picture

SMALL = ImageConfig(height_px=8, width_px=8, crop=1.0)


def png(shade: int, side_px: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px), (shade, 255 - shade, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, in three splits, four pictures each."""
    for split in ("train", "val", "test"):
        for shade, label in ((40, "dark"), (200, "light")):
            place = tmp_path / "set" / split / label
            place.mkdir(parents=True)
            for number in range(4):
                (place / f"{number}.png").write_bytes(png(shade + number))
    return tmp_path / "set"


def write_parquet(
    path: Path, labels: list[object], *, names: list[str] | None = None, image: str = "image", label: str = "label"
) -> None:
    """Write a file as `datasets` does."""
    import json

    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    images = [{"bytes": png(index), "path": f"{index}.png"} for index in range(len(labels))]
    table = pa.table({image: images, label: labels})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


# digits


def test_the_splits_of_the_digits_are_disjoint_stratified_and_cover_everything() -> None:
    data = DigitsData()
    counts = {split: len(list(data.png_files(split))) for split in ("train", "val", "test")}
    assert counts == {"train": 1257, "val": 180, "test": 360}
    targets = torch.tensor([digit for _, digit in data.png_files("test")])
    assert torch.bincount(targets).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_the_same_seed_gives_the_same_split_and_another_gives_another() -> None:
    first, again, other = (list(DigitsData(split_seed=seed).png_files("test")) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_validation_sees_the_pixels_that_the_service_sees() -> None:
    data = DigitsData()
    content, digit = next(data.png_files("test"))
    batch = data.dataset("test")[BatchKey(0, [0])]
    assert torch.equal(batch.pixels[0], EvalTransform(data.image).to_pixels(decode_image(content)))
    assert int(batch.targets) == digit


# order and augmentation


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_all_processes_together_see_the_batches_of_one(num_ranks: int) -> None:
    def batches(rank: int, world_size: int, size: int) -> list[list[int]]:
        return [key.numbers for key in TrainBatches(50, size, 7, Share(rank, world_size), lambda: (3, 0))]

    alone = batches(0, 1, 4 * num_ranks)
    shares = [batches(rank, num_ranks, 4) for rank in range(num_ranks)]
    assert [[number for part in parts for number in part] for parts in zip(*shares, strict=True)] == alone


def test_an_epoch_that_is_resumed_has_the_rest_of_its_batches() -> None:
    whole = list(TrainBatches(50, 8, 0, Share(), lambda: (2, 0)))
    assert list(TrainBatches(50, 8, 0, Share(), lambda: (2, 4))) == whole[4:]
    assert list(TrainBatches(50, 8, 0, Share(), lambda: (3, 0))) != whole
    assert len({number for key in whole for number in key.numbers}) == 48


@pytest.mark.parametrize("num_images", [101, 7, 3])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_drops_and_repeats_nothing(num_images: int, num_ranks: int) -> None:
    shares = [EvalBatches(num_images, 4, Share(rank, num_ranks)) for rank in range(num_ranks)]
    seen = [number for share in shares for key in share for number in key.numbers]
    assert sorted(seen) == list(range(num_images))
    assert all(len(list(share)) == len(share) for share in shares)


def test_fewer_pictures_than_processes_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="1 pictures cannot be shared by 2 processes"):
        EvalBatches(1, 4, Share(0, 2))


@pytest.mark.parametrize("crop", ["resized", "padded", "affine", "none"])
@pytest.mark.parametrize("num_rand_ops", [0, 2])
def test_augmentation_is_a_function_of_seed_epoch_and_picture(crop: str, num_rand_ops: int) -> None:
    augment = AugmentConfig(crop=crop, num_rand_ops=num_rand_ops)  # type: ignore[arg-type]
    dataset = SyntheticData(num_train=8, num_eval=4, image=SMALL, augment=augment).dataset("train")
    together = dataset[BatchKey(1, [0, 1, 2, 3, 4, 5])].pixels
    torch.manual_seed(123)
    apart = torch.cat([dataset[BatchKey(1, [number])].pixels for number in (0, 1, 2, 3, 4, 5)])
    assert together.dtype == torch.uint8
    assert together.shape == (6, 3, 8, 8)
    assert torch.equal(together, apart)
    assert not torch.equal(together, dataset[BatchKey(2, [0, 1, 2, 3, 4, 5])].pixels)


def test_the_batched_shift_is_a_cut_from_a_black_frame_or_its_mirror() -> None:
    dataset = SyntheticData(num_train=64, num_eval=4, image=SMALL, augment=AugmentConfig(crop="padded")).dataset(
        "train"
    )
    plain = SyntheticData(num_train=64, num_eval=4, image=SMALL, augment=AugmentConfig(crop="none", flip=0))
    numbers = list(range(64))
    changed, original = dataset[BatchKey(0, numbers)].pixels, plain.dataset("train")[BatchKey(0, numbers)].pixels
    kinds = set()
    for after, before in zip(changed, original, strict=True):
        framed = torch.nn.functional.pad(before, (1, 1, 1, 1))
        cuts = {
            (y, x, mirrored): framed[:, y : y + 8, x : x + 8].flip(2) if mirrored else framed[:, y : y + 8, x : x + 8]
            for y in range(3)
            for x in range(3)
            for mirrored in (False, True)
        }
        kinds |= {kind for kind, cut in cuts.items() if torch.equal(cut, after)}
    assert len(kinds) > 12


def test_random_cuts_are_of_the_areas_and_shapes_of_torchvisions() -> None:
    draws_ND = np.random.default_rng(0).random((2000, 22))
    boxes = [random_box(300, 400, 0.25, draws_D.tolist()) for draws_D in draws_ND]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.74 < width / height < 1.35
    torch.manual_seed(0)
    cut, picture = RandomResizedCrop(1), torch.empty(3, 300, 400)
    theirs = np.array([cut.get_params(picture, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in boxes])
    for combine in (np.multiply, np.divide):
        ours, expected = (
            np.quantile(combine(box_N4[:, 3], box_N4[:, 2]), [0.01, 0.25, 0.5, 0.75, 0.99])
            for box_N4 in (np.array(boxes), theirs)
        )
        assert ours == pytest.approx(expected, rel=0.05)


def test_a_cut_from_a_strip_is_its_middle() -> None:
    assert random_box(10, 1000, 0.9, [0.5] * 22) == (0, 493, 10, 13)
    assert random_box(1000, 10, 0.9, [0.5] * 22) == (493, 0, 13, 10)


def test_a_cut_shows_what_torchvision_would_show_but_for_a_rounding() -> None:
    from torchvision.transforms.v2.functional import resized_crop

    picture_HW3 = torch.from_numpy(np.array(Image.open(io.BytesIO(make_picture(90, 70)))))
    config, image = AugmentConfig(flip=0), ImageConfig(height_px=24, width_px=32, interpolation="bilinear")
    [ours_3HW] = Augment(config, image, seed=3).batch([picture_HW3], 5, [11])
    draws_D = uniforms(derive_seed("place", 3, 5), np.array([11]), 23)[0, 1:].tolist()
    box = random_box(70, 90, config.min_area, draws_D)
    expected_3HW = resized_crop(Image.fromarray(picture_HW3.numpy()), *box, size=[24, 32])
    distance = np.abs(ours_3HW.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected_3HW).astype(int))
    assert distance.max() <= 1


def test_a_mirror_image_is_the_other_one_turned_round() -> None:
    image = ImageConfig(height_px=8, width_px=8)
    picture_HW3 = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(8, 8, 3)
    plain, mirrored = (
        Augment(AugmentConfig(crop="none", flip=flip), image, seed=0).batch([picture_HW3], 0, [0]) for flip in (0, 1)
    )
    assert torch.equal(mirrored, plain.flip(3))
    assert torch.equal(plain[0].permute(1, 2, 0), picture_HW3)


def test_cached_pictures_are_the_decoded_ones() -> None:
    options = {"num_train": 8, "num_eval": 4, "image": SMALL}
    cached, decoded = (SyntheticData(cache_mib=mib, **options).dataset("train") for mib in (64, 0))  # type: ignore[arg-type]
    for _ in range(2):
        assert torch.equal(cached[BatchKey(0, [0, 5])].pixels, decoded[BatchKey(0, [0, 5])].pixels)


# folders


def test_a_folder_of_class_folders_is_read_in_the_order_of_names(folder: Path) -> None:
    data = ImageFolderData(str(folder), image=SMALL, batch_size=3)
    assert data.labels == ["dark", "light"]
    assert data.source("train").targets.tolist() == [0] * 4 + [1] * 4
    assert data.source("val").name(0).endswith("set/val/dark/0.png")
    assert sum(len(batch.targets) for batch in data.val_dataloader()) == 8


def test_a_changed_file_changes_the_fingerprint(folder: Path) -> None:
    before = ImageFolderData(str(folder)).fingerprint()
    assert ImageFolderData(str(folder)).fingerprint() == before
    (folder / "train" / "dark" / "0.png").write_bytes(png(40, side_px=13))
    assert ImageFolderData(str(folder)).fingerprint() != before


def _remove_train(root: Path) -> None:
    (root / "train").rename(root / "elsewhere")


def _remove_evaluation(root: Path) -> None:
    (root / "val").rename(root / "a")
    (root / "test").rename(root / "b")


def _keep_one_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "light").rename(root / split / ".light")


def _empty_classes(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.unlink()


def _add_class(root: Path) -> None:
    (root / "test" / "dark").rename(root / "test" / "dusk")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_remove_train, "has no folder train"),
        (_remove_evaluation, "has neither a folder val nor a folder test"),
        (_keep_one_class, "has one class, 'dark'; a classifier needs two or more."),
        (_empty_classes, "hold no pictures"),
        (_add_class, "The test split of set has 'dusk', which the train split has not."),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_one_sentence(
    spoil: Callable[[Path], None], sentence: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(EcaHubError, match=sentence):
        ImageFolderData(str(folder)).check()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="There is no folder"):
        ImageFolderData(str(tmp_path / "nowhere"))


def test_without_a_test_folder_the_validation_pictures_stand_for_both(folder: Path) -> None:
    (folder / "test").rename(folder / ".test")
    data = ImageFolderData(str(folder))
    assert data.source("test").name(0) == data.source("val").name(0)


# broken files


def test_a_broken_picture_is_left_out_and_named(folder: Path) -> None:
    broken = folder / "train" / "dark" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    batch = ImageFolderData(str(folder), image=SMALL).dataset("train")[BatchKey(0, [0, 1, 2])]
    assert batch.numbers.tolist() == [0, 2]
    [bad] = batch.bad
    assert bad.name == str(broken)
    assert "PNG cannot be decoded" in bad.reason


def test_a_batch_of_broken_pictures_stops_the_run(folder: Path) -> None:
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(TrainingStopped, match="Every picture of a batch is broken"):
        ImageFolderData(str(folder), image=SMALL).dataset("train")[BatchKey(0, [0, 1, 2])]


# parquet


def test_parquet_of_the_hub_loads_with_its_class_names(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1, 1], names=["cat", "dog"])
    data = ParquetData(str(tmp_path), image=SMALL)
    assert data.labels == ["cat", "dog"]
    assert data.source("val").targets.tolist() == [0, 1, 1]
    assert data.source("test").name(2) == "test.parquet row 2 (2.png)"
    copy = pickle.loads(pickle.dumps(data.dataset("train")))
    assert torch.equal(copy[BatchKey(0, [1])].pixels, data.dataset("train")[BatchKey(0, [1])].pixels)


def test_labels_that_are_words_are_numbered_as_in_the_train_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ["eel", "cat", "dog"])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", ["dog", "eel"])
    data = ParquetData(str(tmp_path))
    assert data.labels == ["cat", "dog", "eel"]
    assert data.source("test").targets.tolist() == [1, 2]


def test_a_label_that_only_the_test_split_has_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", ["cat", "dog"])
    write_parquet(tmp_path / "validation.parquet", ["dog", "cat"])
    write_parquet(tmp_path / "test.parquet", ["dog", "yak"])
    with pytest.raises(InvalidConfig, match=r"The test split of .* has 'yak', which the train split has not"):
        ParquetData(str(tmp_path))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1])
    with pytest.raises(InvalidConfig, match="has no column 'fine_label'; it has image, label"):
        ParquetData(str(tmp_path), label_column="fine_label")


def test_a_folder_without_parquet_files_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidConfig, match=r"neither validation\*\.parquet nor test"):
        ParquetData(str(tmp_path))
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidConfig, match="is no parquet file"):
        ParquetData(str(tmp_path))


# synthetic


def test_synthetic_pictures_differ_between_splits_and_are_the_same_again() -> None:
    train, val = (SyntheticData(image=SMALL).source(split) for split in ("train", "val"))
    assert train.read(0) == SyntheticData(image=SMALL).source("train").read(0)
    assert train.read(0) != val.read(0)
    assert np.bincount(train.targets).tolist() == [64] * 4
