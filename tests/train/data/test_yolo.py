"""YOLO text folders in the layouts that people have, and the lines that are refused or left out."""

from pathlib import Path

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.coco_data import YoloData
from tests.train.data.detection_files import write_yolo


def test_boxes_and_polygons_become_pixels(tmp_path: Path) -> None:
    split = YoloData(str(write_yolo(tmp_path))).split("train")
    first, second, third = split.images
    assert first.boxes.tolist() == [pytest.approx([30, 10, 50, 30]), pytest.approx([4, 2, 12, 6])]
    assert second.boxes.tolist() == [pytest.approx([8, 8, 48, 32])]
    assert len(third.boxes) == 0
    assert split.labels == ["disk", "bar"]
    assert split.report.num_empty == 1
    assert split.ground_truth["annotations"][0]["area"] == pytest.approx(400)


@pytest.mark.parametrize("layout", ["roboflow", "yaml paths", "classes.txt"])
def test_other_layouts_are_found(layout: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    if layout == "roboflow":
        for ours, theirs in (("train", "train"), ("val", "valid")):
            for kind in ("images", "labels"):
                (root / theirs).mkdir(exist_ok=True)
                (root / kind / ours).rename(root / theirs / kind)
    elif layout == "yaml paths":
        for kind in ("images", "labels"):
            (root / kind / "train").rename(root / kind / "sommer")
        (root / "data.yaml").write_text("path: .\ntrain: images/sommer\nval: images/val\nnames: [disk, bar]\n")
    else:
        (root / "data.yaml").unlink()
        (root / "classes.txt").write_text("disk\nbar\n")
    assert YoloData(str(root)).split("train").report.num_objects == 3
    assert YoloData(str(root)).split("test").report.num_objects == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("2 0.5 0.5 0.1 0.1", r"class that is not 0 to 1 \(a.txt line 2: 2 0.5"),
        ("-1 0.5 0.5 0.1 0.1", "class that is not 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class that is not 0 to 1"),
        ("0 0.5 0.5 0.1", "neither four numbers nor the points"),
        ("0 nan 0.5 0.1 0.1", "NaN or infinity"),
        ("disk 0.5 0.5 0.1 0.1", "lines that are not numbers"),
        ("0 40 20 10 10", "numbers outside 0 to 1, as pixels are"),
        ("0 0.5 0.5 0.9 0.9\n0 0.6 0.7 0.9 1.0", "as x1 y1 x2 y2 do"),
    ],
)
def test_a_line_that_cannot_be_learned_from_is_refused(line: str, sentence: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.25 0.5", line]})
    with pytest.raises(InvalidConfig, match=sentence):
        YoloData(str(root)).check()


def test_repeated_lines_and_boxes_without_an_area_are_left_out(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.25 0.5", "0 0.5 0.5 0.25 0.5", "1 0.5 0.5 0 0.1"]})
    (root / "labels/train/none.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    summary = YoloData(str(root)).split("train").report.summary()
    assert "1 repeated lines (a.txt line 2)" in summary
    assert "1 boxes without an area (a.txt line 3)" in summary
    assert "1 text files without an image (none.txt)" in summary


def test_masks_need_polygons(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="2 boxes without the polygon that a mask needs"):
        YoloData(str(write_yolo(tmp_path)), with_masks=True).check()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no class names"):
        YoloData(str(tmp_path))
    root = write_yolo(tmp_path / "x")
    (root / "images/val").rename(root / "images/elsewhere")
    with pytest.raises(InvalidConfig, match="has no images of val"):
        YoloData(str(root))
