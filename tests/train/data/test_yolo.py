"""YOLO text folders in the layouts that people have, and the lines that are refused or left out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.coco_data import YoloData
from eca_hub.train.data.sampler import BatchIndex
from tests.train.data.detection_files import BROKEN, put_device, write_yolo


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


def test_keypoints_after_a_box_are_left_out_and_not_taken_for_a_polygon(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.1 0.9 0.9"]})
    with (root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [3, 2]\n")
    split = YoloData(str(root)).split("train")
    [with_box] = [image for image in split.images if len(image.boxes)]
    assert with_box.boxes.tolist() == [pytest.approx([30, 10, 50, 30])]
    assert "keypoints are left out, boxes are learned" in split.report.summary()


@pytest.mark.parametrize(
    ("shape", "line", "sentence"),
    [
        ("[17, 3]", "0 0.5 0.5 0.25 0.5 0.1 0.1", "lines without the 4 numbers of a box and 51 of kpt_shape"),
        ("17", "0 0.5 0.5 0.25 0.5", "kpt_shape in .* is 17; it must be the number of keypoints"),
    ],
)
def test_keypoints_of_another_number_are_refused(shape: str, line: str, sentence: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": [line]})
    with (root / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: {shape}\n")
    with pytest.raises(InvalidConfig, match=sentence):
        YoloData(str(root)).check()


def test_a_text_file_that_is_a_pointer_or_a_dangling_link_is_refused(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    first, second, *_ = sorted((root / "labels" / "train").iterdir())
    first.unlink()
    first.symlink_to(tmp_path / "absent")
    second.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(InvalidConfig, match=r"text files that cannot be read .*No such file.* pointers of Git LFS"):
        YoloData(str(root)).check()


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


def test_files_that_are_not_decoded_are_named_and_images_among_them_count_as_broken(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    images = root / "images/train"
    (images / "a.png").unlink()
    for name in ("a.heic", "b.HEIC", "b.aae", "film.mov"):
        (images / name).write_bytes(b"\0\0\0\x18ftypheic")
    data = YoloData(str(root), max_bad_samples=1)
    report = data.split("train").report
    assert "3 files that are not decoded (b.HEIC, b.aae, film.mov)" in report.summary()
    assert [Path(path).name for path in report.broken] == ["a.heic"]


@pytest.mark.parametrize(("change", "reason"), [each for each in BROKEN if each[0] is not put_device])
def test_a_file_that_the_decoder_would_refuse_is_a_broken_image_and_named_by_the_run(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    root = write_yolo(tmp_path)
    change(root / "images/train/a.png")
    with pytest.raises(InvalidConfig, match=rf"Broken images: 1, .*; the first: .*train/a\.png: {reason}"):
        YoloData(str(root)).check()
    data = YoloData(str(root), max_bad_samples=1)
    data.check()
    batch = data.dataset("train")[BatchIndex(0, [0, 1, 2])]
    assert batch.indices.tolist() == [1, 2]
    assert [(bad.name, bad.reason[:20]) for bad in batch.bad_samples] == [
        (str(root / "images/train/a.png"), reason[:20])
    ]


def test_images_that_were_not_fetched_are_named_before_their_missing_boxes(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    for path in (root / "images/train").iterdir():
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InvalidConfig, match=r"Broken images: 3, .*a\.png: a pointer of Git LFS"):
        YoloData(str(root)).check()


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert YoloData("~/set").num_images("train") == 3


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


@pytest.mark.parametrize(
    "document",
    [
        "names: {'0': disk, '1': bar}",
        "\ufeffnames: [disk, bar]",
        "nc: 2\nnames: [disk, bar]",
        "path: /home/elsewhere/set\ntrain: images/train\nval: images/val\nnames: [disk, bar]",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [disk, bar]",
        "path: C:\\set\ntrain: images\\train\nval: images\\val\nnames: [disk, bar]",
        "path:\ntrain: [images/train]\nval: images/val\ntest: test-dev2017.txt\nnames: [disk, bar]",
    ],
)
def test_what_tools_write_into_data_yaml_is_understood(document: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text(document)
    (root / "compose.yaml").write_text("services: [")
    data = YoloData(str(root))
    assert data.labels == ["disk", "bar"]
    assert data.split("train").report.title == str(root / "images/train")


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("names: {0: disk, a: bar}", r"are numbered \[0, 'a'\]; number them from 0"),
        ("names: {0: disk, 2: bar}", r"are numbered \[0, 2\]"),
        ("names: [yes, no]", "it holds True. YAML reads yes, no"),
        ("names: [disk, '']", "it holds ''"),
        ("nc: 3\nnames: [disk, bar]", "has 2 names, and nc is 3"),
        ("train: images/summer\nnames: [disk, bar]", "'images/summer' for train, and there is no such folder"),
        ("train: [images/a, images/b]\nnames: [disk, bar]", "for train, where one folder is read"),
        (
            "val: val.txt\nnames: [disk, bar]",
            "'val.txt' for val, where one folder is read. Remove this line to read all",
        ),
    ],
)
def test_a_data_yaml_that_means_something_else_is_refused(document: str, sentence: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text(document)
    with pytest.raises(InvalidConfig, match=sentence):
        YoloData(str(root))


def test_digits_are_names_of_classes(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text("names: [0, 1]")
    assert YoloData(str(root)).labels == ["0", "1"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_class_names_in_another_encoding_are_refused(encoding: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("disk\nbär\n", encoding=encoding)
    with pytest.raises(InvalidConfig, match=r"classes.txt is not UTF-8 text. Save it as UTF-8"):
        YoloData(str(root))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf0 0.5 0.5 0.25 0.5\r\n",
        b"0.000000e+00 5.0e-01 5.0e-01 2.5e-01 5.0e-01\n",
        b"0\t0.5\t0.5\t0.25\t.5",
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".TXT"])
def test_lines_are_read_as_other_tools_write_them(content: bytes, ending: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": ["1 0.1 0.1 0.1 0.1"]})
    (root / "labels/train/a.txt").unlink()
    (root / "labels/train/a").with_suffix(ending).write_bytes(content)
    [image] = YoloData(str(root)).split("train").images
    assert image.boxes.tolist() == [pytest.approx([30, 10, 50, 30])]
    assert image.labels.tolist() == [0]
