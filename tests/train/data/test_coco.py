"""A COCO annotation file is checked before training: what is wrong is counted and named."""

import bz2
import copy
import gzip
import json
import lzma
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eca_hub.errors import InvalidConfig
from eca_hub.images.rle import encode_mask
from eca_hub.train.data.coco import read_coco
from eca_hub.train.data.coco_data import CocoData
from eca_hub.train.data.detection_dataset import load_pixels
from eca_hub.train.data.sampler import BatchIndex
from eca_hub.train.detection_metrics import evaluate_detections
from tests.train.data.detection_files import BROKEN, coco_document, write_coco

Change = Callable[[dict[str, Any]], None]


def read(root: Path, *, with_masks: bool = True, **changed: Any) -> Any:
    return read_coco(
        root / "annotations/instances_train2017.json", root / "train2017", with_masks=with_masks, **changed
    )


def test_the_report_counts_images_boxes_masks_crowds_and_classes(tmp_path: Path) -> None:
    split = read(write_coco(tmp_path))
    report = split.report
    assert (report.num_images, report.num_empty, report.num_objects, report.num_masks) == (6, 1, 10, 10)
    assert (report.num_crowd, report.num_classes, report.num_absent_classes, report.max_objects) == (1, 3, 1, 2)
    assert report.summary().endswith(
        "6 images (1 without objects), 10 boxes, 10 masks, 1 crowd regions, 3 classes, 1 of them without a box, median "
        "box 18 x 12 px, at most 2 boxes in an image"
    )
    assert split.labels == ["bar", "disk", "far"]
    assert split.category_ids == [3, 7, 90]
    assert split.images[0].boxes.tolist() == [[4, 5, 20, 17], [14, 8, 30, 21]]
    assert split.images[0].labels.tolist() == [1, 0]


def test_the_ground_truth_keeps_crowds_and_every_id(tmp_path: Path) -> None:
    truth = read(write_coco(tmp_path)).ground_truth
    assert [each["id"] for each in truth["images"]] == [1000, 993, 986, 979, 972, 965]
    assert sum(each["iscrowd"] for each in truth["annotations"]) == 1
    assert len(truth["annotations"]) == 11


def first(document: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = document["annotations"][0]
    return entry


LEFT_OUT: list[tuple[Change, str]] = [
    (lambda d: first(d).update(bbox=[4, 5, 0, 12]), r"1 boxes without an area \(annotation 1: \[4, 5, 0, 12\]\)"),
    (lambda d: first(d).update(bbox=[4, 5, -3, 12]), "1 boxes without an area"),
    (lambda d: first(d).update(bbox=[70, 5, 10, 12]), "1 boxes outside their image"),
    (lambda d: first(d).update(id=2), r"1 repeated annotation ids, numbered anew \(2\)"),
    (lambda d: d["annotations"].append(dict(first(d), id={})) or first(d).update(id={}), "1 repeated annotation ids"),
    (lambda d: first(d).update(bbox=[1e308, 5, 1e308, 12]), "1 boxes outside their image"),
]


@pytest.mark.parametrize(("change", "sentence"), LEFT_OUT)
def test_what_training_can_do_without_is_counted_and_left_out(change: Change, sentence: str, tmp_path: Path) -> None:
    document = coco_document()
    change(document)
    report = read(write_coco(tmp_path, document)).report
    assert "left out" in report.summary()
    assert re.search(sentence, report.summary())


def test_a_box_that_reaches_outside_is_cut_at_the_edge(tmp_path: Path) -> None:
    document = coco_document()
    first(document).update(bbox=[-3, 40, 20, 30])
    split = read(write_coco(tmp_path, document))
    assert split.images[0].boxes[0].tolist() == [0, 40, 17, 48]


def boxes_as_corners(document: dict[str, Any]) -> None:
    for each in document["annotations"]:
        each["bbox"] = [40, 30, 60, 45]


def with_corners(document: dict[str, Any], *dropped: str) -> None:
    for each in document["annotations"]:
        x, y, width, height = each["bbox"]
        each["bbox"] = [x, y, x + width, y + height]
        for name in dropped:
            each.pop(name)


def no_areas(document: dict[str, Any]) -> None:
    for each in document["annotations"]:
        each["bbox"][2] = 0


REFUSED: list[tuple[Change, str]] = [
    (lambda d: first(d).update(category_id=99), r"1 annotations of unknown categories \(annotation 1: category 99\)"),
    (lambda d: first(d).update(image_id=5), r"annotations of images that are not listed \(annotation 1: image 5\)"),
    (lambda d: first(d).update(image_id=[1000]), r"annotations of images that are not listed \(annotation 1: image \["),
    (lambda d: first(d).update(category_id={}), r"annotations of unknown categories \(annotation 1: category \{\}"),
    (lambda d: first(d).update(category_id="7"), r"annotations of unknown categories \(annotation 1: category '7'"),
    (lambda d: first(d).update(iscrowd="0"), r"1 annotations whose iscrowd is neither 0 nor 1 \(annotation 1: '0'\)"),
    (
        lambda d: d["annotations"][-1].update(segmentation={"size": [48, 64], "counts": "abc"}),
        "masks that do not decode",
    ),
    (lambda d: d["annotations"][-1].pop("segmentation"), r"1 masks that are absent \(annotation 11\)"),
    (lambda d: first(d).update(bbox=[10**400, 5, 6, 7]), "boxes that are not four finite numbers"),
    (lambda d: first(d).update(bbox=["4", "5", "6", "7"]), "boxes that are not four finite numbers"),
    (lambda d: first(d).update(segmentation=[[10**400] * 6]), "masks that are no polygons"),
    (lambda d: first(d).update(segmentation={"size": [48, 64], "counts": [math.inf]}), "masks that do not decode"),
    (lambda d: first(d).update(segmentation={"size": [48, 64], "counts": ["3072"]}), "masks that do not decode"),
    (lambda d: d["images"][0].update(file_name=""), "1 images without id and file_name"),
    (lambda d: d["images"][0].update(file_name="x" * 5000), "1 images missing in"),
    (lambda d: d["images"][0].update(file_name="x" * 5000 + "/y.png"), "1 images missing in"),
    (lambda d: first(d).update(segmentation=[[0, 0, 1e8, 0, 1e8, 1e8]]), "masks that reach far outside their image"),
    (
        lambda d: d["images"][0].update(file_name="train2017/0.png"),
        r"1 images missing in .*/train2017, though .* has them \(train2017/0.png\)",
    ),
    (lambda d: first(d).update(bbox=[4, 5, math.nan, 12]), "boxes that are not four finite numbers"),
    (lambda d: first(d).update(bbox=[4, 5, 6]), "boxes that are not four finite numbers"),
    (lambda d: first(d).pop("bbox"), "boxes that are not four finite numbers"),
    (lambda d: d["images"].append(copy.copy(d["images"][0])), r"1 images with the id of another \(1000\)"),
    (lambda d: d["images"][0].update(file_name="absent.png"), r"1 images missing in .*train2017 \(absent.png\)"),
    (lambda d: d["images"][0].update(width=0), "1 images without width and height"),
    (
        lambda d: d["images"][1].update(width=70),
        r"of another size than annotated \(1.png: 48 x 64, annotated 70 x 64\)",
    ),
    (lambda d: first(d).update(segmentation=[[1, 2, 3, 4]]), "1 masks that are no polygons of three points"),
    (lambda d: first(d).update(segmentation={"size": [48, 64], "counts": "abc"}), "1 masks that do not decode"),
    (lambda d: first(d).update(segmentation={"size": [9, 9], "counts": [81]}), "masks that have another size"),
    (lambda d: first(d).pop("segmentation"), r"1 masks that are absent \(annotation 1\)"),
    (boxes_as_corners, "boxes reaching far outside their image, as x1, y1, x2, y2 do"),
    (with_corners, "boxes with the area or outline of x1, y1, x2, y2, where COCO has x, y, width, height"),
    (lambda d: with_corners(d, "area"), r"area or outline of x1, y1, x2, y2, where COCO .* \(10 of 10\)"),
    (no_areas, "none of them with an area"),
    (lambda d: d.update(categories=[*d["categories"], {"id": 7, "name": "x"}]), "categories with the id of another"),
    (
        lambda d: d.update(categories=[*d["categories"], {"id": 8, "name": "bar"}]),
        "categories with the name of another",
    ),
    (lambda d: d.update(categories=[]), "categories, where one is the least"),
    (lambda d: d.update(images=[], annotations=[]), "images, where one is the least"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_what_must_be_corrected_is_refused_in_one_sentence(change: Change, sentence: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    document = coco_document()
    change(document)
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(document))
    with pytest.raises(InvalidConfig, match=sentence) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_corners_are_refused_by_their_areas_without_outlines(tmp_path: Path) -> None:
    document = coco_document()
    with_corners(document, "segmentation")
    write_coco(tmp_path, document)
    with pytest.raises(InvalidConfig, match="boxes with the area or outline of x1, y1, x2, y2"):
        read(tmp_path, with_masks=False)


def test_boxes_that_may_be_corners_are_remarked_on_where_nothing_says_so(tmp_path: Path) -> None:
    document = coco_document()
    with_corners(document, "segmentation", "area")
    for each in document["annotations"]:
        each["bbox"] = [4, 5, 20, 17]
    write_coco(tmp_path / "corners", document)
    remark = "in every box the third number is above the first"
    assert remark in read(tmp_path / "corners", with_masks=False).report.summary()
    document = coco_document()
    for each in document["annotations"]:
        each["bbox"] = [0, 0, *each["bbox"][2:]]
        each.pop("segmentation")
    assert remark not in read(write_coco(tmp_path / "sizes", document), with_masks=False).report.summary()


def test_several_kinds_of_faults_are_named_together(tmp_path: Path) -> None:
    document = coco_document()
    first(document)["category_id"] = 99
    document["annotations"][1]["bbox"] = None
    write_coco(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(document))
    with pytest.raises(InvalidConfig, match=r"unknown categories .*; 1 boxes that are not"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "no list of images and annotations and categories"),
        ("{", "is not JSON"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list of annotations"),
        ('{"images": [1], "annotations": [], "categories": []}', "an entry is not an object"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]', "not a COCO annotation file"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=sentence):
        read_coco(path, tmp_path, with_masks=False)


def test_masks_are_ignored_for_boxes_only(tmp_path: Path) -> None:
    document = coco_document()
    first(document)["segmentation"] = "nonsense"
    assert read(write_coco(tmp_path, document), with_masks=False).report.num_objects == 10


def test_a_file_turned_by_its_orientation_may_be_annotated_as_stored_or_as_displayed(tmp_path: Path) -> None:
    for stored_as_annotated in (True, False):
        root = write_coco(tmp_path / str(stored_as_annotated))
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:10, :20] = 255
        image = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[0x0112] = 6
        if not stored_as_annotated:
            image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(root / "train2017/0.png", exif=exif)
        [stored, *_] = read(root).images
        assert stored.is_unrotated == stored_as_annotated
        pixels_3HW = load_pixels(stored)
        assert tuple(pixels_3HW.shape) == (3, 48, 64)
        assert bool((pixels_3HW[:, :10, :20] > 200).all())


def test_validation_must_have_the_categories_of_training(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    document = coco_document()
    document["categories"] = [{"id": 7, "name": "bar"}, {"id": 3, "name": "disk"}]
    (root / "annotations/instances_val2017.json").write_text(json.dumps(document))
    with pytest.raises(InvalidConfig, match="categories that the training split does not have"):
        CocoData(str(root)).check()


def test_the_smallest_images_are_those_with_the_fewest_objects(tmp_path: Path) -> None:
    data = CocoData(str(write_coco(tmp_path)), smallest_images=2)
    assert [len(image.boxes) for image in data.split("train").images] == [2, 2]
    assert {each["image_id"] for each in data.split("val").ground_truth["annotations"]} <= {
        image.image_id for image in data.split("val").images
    }
    with pytest.raises(InvalidConfig, match="5 images with objects, fewer than 6"):
        CocoData(str(tmp_path), smallest_images=6).check()


def test_other_boxes_change_the_fingerprint(tmp_path: Path) -> None:
    before = CocoData(str(write_coco(tmp_path / "a"))).fingerprint()
    document = coco_document()
    first(document)["bbox"][2] += 1
    assert CocoData(str(write_coco(tmp_path / "b"))).fingerprint() == before
    assert CocoData(str(write_coco(tmp_path / "c", document))).fingerprint() != before


@pytest.mark.parametrize("area", [None, "192", math.nan, -1, 0, [192], 10**400])
def test_an_area_that_is_no_number_is_that_of_the_box(area: object, tmp_path: Path) -> None:
    document = coco_document()
    first(document).update(area=area)
    truth = read(write_coco(tmp_path, document)).ground_truth
    assert truth["annotations"][0]["area"] == 16 * 12
    result = [{"image_id": 1000, "category_id": 7, "bbox": [4, 5, 16, 12], "score": 0.9}]
    assert evaluate_detections(truth, result).figures["AP50"] > 0


def test_a_box_without_an_area_and_without_a_mask_is_not_evaluated(tmp_path: Path) -> None:
    document = coco_document()
    first(document).update(bbox=[4, 5, 0, 12], segmentation=[])
    root = write_coco(tmp_path, document)
    assert len(read(root).ground_truth["annotations"]) == 10
    assert len(read(root, with_masks=False).ground_truth["annotations"]) == 11


def test_file_names_written_on_windows_are_found(tmp_path: Path) -> None:
    document = coco_document()
    root = write_coco(tmp_path, document)
    (root / "train2017" / "night").mkdir()
    (root / "train2017" / "0.png").rename(root / "train2017" / "night" / "0.png")
    document["images"][0]["file_name"] = "night\\0.png"
    (root / "annotations/instances_train2017.json").write_text(json.dumps(document))
    assert Path(read(root).images[0].path) == root / "train2017" / "night" / "0.png"


@pytest.mark.parametrize(("change", "reason"), BROKEN)
def test_a_file_that_the_decoder_would_refuse_is_a_broken_image_before_training(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    root = write_coco(tmp_path)
    change(root / "train2017" / "0.png")
    with pytest.raises(InvalidConfig, match=rf"Broken images: 1, .*; the first: .*train2017/0\.png: {reason}"):
        CocoData(str(root)).check()
    data = CocoData(str(root), max_bad_samples=1)
    data.check()
    [bad] = data.dataset("train")[BatchIndex(0, [0, 1])].bad_samples
    assert bad.reason.startswith(reason)


def test_broken_files_of_one_name_in_two_splits_are_two(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    for split in ("train2017", "val2017"):
        (root / split / "0.png").write_bytes(b"no image at all")
    with pytest.raises(InvalidConfig, match=r"Broken images: 2, and --data.max_bad_samples allows 1"):
        CocoData(str(root), max_bad_samples=1).check()


def test_run_length_code_with_a_size_of_floats_is_evaluated(tmp_path: Path) -> None:
    document = coco_document()
    mask = np.zeros((48, 64), bool)
    mask[5:17, 4:20] = True
    code = encode_mask(mask)
    first(document)["segmentation"] = {**code, "size": [48.0, 64.0]}
    document["annotations"][-1]["segmentation"]["size"] = [48.0, 64.0]
    truth = read(write_coco(tmp_path, document)).ground_truth
    result = [{"image_id": 1000, "category_id": 7, "segmentation": code, "score": 0.9}]
    assert evaluate_detections(truth, result, "segm").figures["AP50"] > 0


def test_the_report_of_the_smallest_images_keeps_what_was_found(tmp_path: Path) -> None:
    document = coco_document()
    first(document).update(bbox=[4, 5, 0, 12])
    root = write_coco(tmp_path, document)
    (root / "train2017" / "1.png").write_bytes(b"no image at all")
    summary = CocoData(str(root), smallest_images=1).split("train").report.summary()
    assert "1 images, 1 boxes, 1 crowd regions" in summary
    assert "left out 1 boxes without an area" in summary
    CocoData(str(root), smallest_images=1).check()
    with pytest.raises(InvalidConfig, match=r"Broken images: 1, .*1\.png: The bytes are not an image"):
        CocoData(str(root), smallest_images=5).check()


def test_a_tilde_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_coco(tmp_path / "set")
    (root / "annotations" / "instances_train2017.json").rename(tmp_path / "train.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CocoData("~/set", train_annotations="~/train.json").num_images("train") == 6


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_annotation_file_is_to_be_unpacked(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    path = root / "annotations/instances_train2017.json"
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(InvalidConfig, match="is a packed archive"):
        read(root)


@pytest.mark.parametrize("name", ["bar\n", "\x1b[31mbar", "a\0b", "x" * 5000])
def test_a_category_that_no_package_could_name_is_refused_before_training(name: str, tmp_path: Path) -> None:
    document = copy.deepcopy(coco_document())
    document["categories"][0]["name"] = name
    with pytest.raises(InvalidConfig, match="Label"):
        CocoData(str(write_coco(tmp_path, document))).check()


def test_half_of_a_character_in_an_id_is_printed_escaped(tmp_path: Path) -> None:
    document = coco_document()
    for each in document["annotations"][:2]:
        each["id"] = "\ud800"
    summary = read(write_coco(tmp_path, document)).report.summary()
    assert "repeated annotation ids, numbered anew (\\ud800)" in summary.encode().decode()


def test_a_split_without_an_image_that_is_whole_is_refused_before_training(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    for path in (root / "val2017").iterdir():
        path.write_bytes(b"no image at all")
    with pytest.raises(InvalidConfig, match=r"Every image of the val split, .*, is broken\. Repair the images"):
        CocoData(str(root), max_bad_samples=99).check()
