"""`eca-hub detect`: boxes on the terminal, drawings, COCO results, and one sentence for each mistake."""

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import eca_hub
import eca_hub.atomic
from eca_hub.__main__ import main
from eca_hub.errors import NonFiniteScores
from eca_hub.hub.pretrained import save_detector
from eca_hub.images.draw import Shape, draw_shapes
from eca_hub.images.masks import InstanceMask
from eca_hub.train.detection_metrics import evaluate_detections
from tests.train.data.detection_files import coco_document, write_coco


@pytest.fixture
def package(detector_package: Path) -> Path:
    return detector_package


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco")) / "val2017"


def detect(package: Path, *words: object) -> int:
    return main(["detect", *map(str, words), "--model", str(package), "--min_score", "0.05"])


def test_by_default_a_detector_that_returns_only_certain_objects_returns_all_of_them(
    package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = eca_hub.Detector.from_pretrained(package)
    detector.model.get_parameter("roi_heads.box_predictor.cls_score.bias").data[1] += 8
    certain = save_detector(detector.model, tmp_path / "certain", labels=("bar", "disk"))
    config = json.loads((certain / "config.json").read_text())
    config["min_score"] = 0.6
    (certain / "config.json").write_text(json.dumps(config))
    assert main(["detect", str(images / "0.png"), "--model", str(certain)]) == 0
    assert "bar" in capsys.readouterr().out


def test_detections_are_printed_drawn_and_written(
    package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [images / "0.png", images / "1.png"]
    drawn, results = tmp_path / "drawn", tmp_path / "results.json"
    folder = tmp_path / "images"
    folder.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    files = [folder / file.name for file in files]
    assert detect(package, folder, "--save_image", drawn, "--to", results) == 0
    shown = capsys.readouterr()
    assert "--to: category ids are 1 to 2, in the order of the labels" in shown.err
    first, second = shown.out.splitlines()
    assert first.startswith(f"{files[0]}  ")
    assert " at (" in first
    assert second.startswith(f"{files[1]}  ")
    written = json.loads(results.read_text())
    assert {each["image_id"] for each in written} == {0, 1}
    assert {each["category_id"] for each in written} <= {1, 2}
    [expected, *_] = eca_hub.Detector.from_pretrained(package).predict(files[0], min_score=0.05)
    left, top, right, bottom = expected.box
    assert written[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top])
    assert written[0]["segmentation"]["size"] == [48, 64]
    image = Image.open(drawn / "0.png")
    assert image.size == (64, 48)
    assert not np.array_equal(np.asarray(image), np.asarray(Image.open(files[0])))


@pytest.mark.slow
def test_results_take_the_ids_of_an_annotation_file_and_can_be_evaluated(
    package: Path, images: Path, tmp_path: Path
) -> None:
    annotations = images.parent / "annotations/instances_val2017.json"
    results = tmp_path / "results.json"
    assert detect(package, *sorted(images.glob("*.png"))[:3], "--to", results, "--annotations", annotations) == 0
    written = json.loads(results.read_text())
    assert {each["image_id"] for each in written} <= {each["id"] for each in coco_document()["images"]}
    assert {each["category_id"] for each in written} <= {3, 7}
    assert 0 <= evaluate_detections(coco_document(), written).figures["AP"] <= 1


def test_json_has_a_line_an_image_and_a_broken_one_does_not_stop_the_others(
    package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert detect(package, tmp_path / "broken.png", images / "2.png", "--json") == 2
    broken, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert broken["error"]["code"] == "not_an_image"
    assert set(found["detections"][0]) == {"label", "index", "score", "box", "mask"}
    assert set(found["detections"][0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--min_score", "2"], "min_score is 2.0"),
        (["--annotations", "x.json"], "--annotations has the ids for --to"),
        (["--to", "absent/x.json"], "There is no folder"),
        (["--to", "x.json", "--annotations", "absent.json"], "absent.json cannot be read"),
        (["--max_detections", "0"], "max_detections is 0"),
        (["--device", "nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in words]
    argv = ["detect", str(images / "0.png"), "--model", str(package), "--min_score", "0.05", *words]
    assert main(argv) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert len(output.strip().splitlines()) == 1
    assert not (tmp_path / "x.json").exists()


@pytest.fixture
def workspace(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images in subfolders and files that --to and --save_image must not replace."""
    for name in ("photos/a.png", "photos/1.png", "more/001.png", "more/a.png", "drawn/a.png/x", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((images / "0.png").read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    categories = [{"name": "bar", "id": 3}, {"name": "disk", "id": 7}]
    for file, names in (("lists_a", ["a.png"]), ("lists_none", []), ("lists_twice", ["x/a.png", "y/a.png"])):
        listed = [{"file_name": name, "id": index} for index, name in enumerate(names)]
        (tmp_path / f"{file}.json").write_text(json.dumps({"images": listed, "categories": categories}))
    turned = {"images": [{"file_name": "a.png", "id": 1, "width": 48, "height": 64}], "categories": categories}
    (tmp_path / "sizes.json").write_text(json.dumps(turned))
    (tmp_path / "windows.json").write_text(json.dumps(turned).replace("a.png", "x\\\\a.png"))
    for file, category in (("names", {"name": "bar", "id": 8}), ("ids", {"name": "far", "id": 3})):
        twice = {"images": [], "categories": [*categories, category]}
        (tmp_path / f"{file}.json").write_text(json.dumps(twice))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("photos/a.png --save_image photos", "photos/a.png would be written over one of the inputs."),
        ("photos/a.png --save_image link", "link/a.png would be written over one of the inputs."),
        ("photos/a.png --to photos/a.png", "photos/a.png would be written over one of the inputs."),
        ("photos/a.png --to lists_a.json --annotations lists_a.json", "lists_a.json would be written over one of"),
        ("photos/a.png --save_image drawn", "drawn/a.png cannot be written: it is a folder."),
        ("photos/a.png --save_image file", "--save_image is file, which is a file and not a folder."),
        ("photos/a.png --save_image new --to photos/new/a.png", "There is no folder"),
        ("photos/a.png --save_image more --to more/../more/a.png", "more/a.png would be written twice."),
        (f"{'x' * 240}.png --save_image new", "cannot be written: File name too long."),
        (f"photos/a.png --to {'x' * 240}.json", "cannot be written: File name too long."),
        ("photos/a.png --to more", "more cannot be written: it is a folder."),
        ("photos/a.png --max_detections 0 --save_image new", "--max_detections is 0; it must be 1 or more."),
        ("photos/a.png --to=", "--to is empty; give a name, or leave the option out."),
        ("photos/a.png --min_score 2 --save_image new", "--min_score is 2.0; it must be 0 to 1."),
        ("file:///a%00b --save_image new", "cannot be written: embedded null byte."),
        ("photos/a.png --to r.json --annotations deep.json", "deep.json is not a COCO annotation file."),
        ("photos/a.png --to r.json --annotations lists_none.json", "lists_none.json lists no image a.png"),
        ("photos/a.png --to r.json --annotations lists_twice.json", "lists_twice.json lists 2 images a.png"),
        (
            "photos/a.png --to r.json --annotations sizes.json",
            "has 48 x 64 px for a.png, which is displayed with 64 x 48",
        ),
        (
            "photos/a.png --to r.json --annotations windows.json",
            "has 48 x 64 px for a.png, which is displayed with 64 x 48",
        ),
        ("photos/a.png --to r.json --annotations names.json", "names.json has 2 categories with the name 'bar'"),
        ("photos/a.png --to r.json --annotations ids.json", "ids.json has 2 categories with the id 3"),
        ("photos/a.png more/a.png --to r.json --annotations lists_a.json", "and more/a.png have the same id 0 in --to"),
        ("photos/1.png more/001.png --to r.json", "photos/1.png and more/001.png have the same id 1 in --to."),
    ],
)
def test_mistakes_of_outputs_and_ids_are_refused_before_a_model_is_loaded(
    line: str, sentence: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    assert main(["detect", *line.split(), "--model", "acme/absent"]) == 2
    [shown] = capsys.readouterr().err.splitlines()
    assert sentence in shown
    assert {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()} == before
    assert not (workspace / "new").exists()


def test_a_score_below_that_of_the_detector_is_refused_before_the_folder_of_drawings_is_made(
    package: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "photos/a.png", "--model", str(package), "--min_score", "0", "--save_image", "new"]) == 2
    assert "for this detector it is 0.05 to 1" in capsys.readouterr().err
    assert not (workspace / "new").exists()


def test_an_earlier_drawing_stays_when_a_new_one_cannot_be_written(
    package: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (workspace / "new").mkdir()
    (workspace / "new" / "a.png").write_bytes(b"earlier")
    monkeypatch.setattr(eca_hub.atomic, "rename_synced", fail)
    assert detect(package, "photos/a.png", "--save_image", "new") == 2
    assert "new/a.png cannot be written: No space left on device." in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in (workspace / "new").iterdir()] == [("a.png", b"earlier")]


def test_an_image_from_standard_input_is_drawn(
    package: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = (workspace / "photos" / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(image)))
    assert detect(package, "-", "--save_image", "new") == 0
    assert capsys.readouterr().out.startswith("-  ")
    with Image.open(workspace / "new" / "-.png") as drawn:
        assert drawn.size == (64, 48)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no image")))
    assert detect(package, "-") == 2
    assert capsys.readouterr().out.startswith("-: The bytes are not an image")


@pytest.fixture
def no_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe whose reader has exited."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        yield


def test_files_are_written_although_the_reader_of_the_output_has_exited(
    package: Path, workspace: Path, no_reader: None
) -> None:
    assert detect(package, "photos", "--to", "r.json", "--save_image", "new") == 0
    assert {each["image_id"] for each in json.loads((workspace / "r.json").read_text())} == {"a.png", 1}
    assert sorted(each.name for each in (workspace / "new").iterdir()) == ["1.png", "a.png"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), NonFiniteScores("The outputs are NaN."), OSError(errno.ENOSPC, "No space left")]
)
def test_an_error_keeps_the_results_of_the_images_before_it(
    error: BaseException,
    package: Path,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict = eca_hub.Detector.predict

    def fail_at_the_second(self: eca_hub.Detector, image: str, **options: Any) -> Any:
        if str(image).endswith("a.png"):
            raise error
        return predict(self, image, **options)

    monkeypatch.setattr(eca_hub.Detector, "predict", fail_at_the_second)
    with contextlib.suppress(OSError):
        assert detect(package, "photos", "--to", "r.json") in (2, 130)
    assert {each["image_id"] for each in json.loads((workspace / "r.json").read_text())} == {1}
    assert "r.json has the results of 1 of 2 images." in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--to r.json", "--save_image more", "--save_image new"])
def test_a_folder_that_may_not_be_written_is_noticed_before_a_model_is_loaded(
    line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["detect", "photos/a.png", "--model", "acme/absent", *line.split()]) == 2
    assert "cannot be written: Permission denied." in capsys.readouterr().err


def test_drawings_and_results_in_the_home_folder_are_written_there(
    package: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workspace))
    assert detect(package, "photos/a.png", "--save_image", "~/new", "--to", "~/r.json") == 0
    assert (workspace / "new" / "a.png").is_file()
    assert (workspace / "r.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text")
def test_a_name_that_is_not_utf8_is_escaped(package: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = workspace / "photos" / os.fsdecode(b"caf\xe9.png")
    image.write_bytes((workspace / "photos" / "a.png").read_bytes())
    assert detect(package, image, "--to", "r.json", "--save_image", "new") == 0
    assert r"caf\udce9.png  " in capsys.readouterr().out
    assert {each["image_id"] for each in json.loads((workspace / "r.json").read_text())} == {image.name}


def test_a_classifier_asked_to_detect_gets_one_sentence(
    tiny_package: Path, images: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(images / "0.png"), "--model", str(tiny_package)]) == 2
    assert "is a classifier, not a detector. Load it with" in capsys.readouterr().err
    assert main(["classify", str(images / "0.png"), "--model", str(package)]) == 2
    assert "is a detector, not a classifier. Load it with" in capsys.readouterr().err


def test_two_images_of_one_name_are_not_drawn_over_each_other(
    package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(package, images / "0.png", images.parent / "train2017/0.png", "--save_image", tmp_path) == 2
    assert "Two images are named 0" in capsys.readouterr().err


def test_masks_and_boxes_are_drawn_in_place() -> None:
    mask = InstanceMask(np.ones((28, 28), np.float32), (30, 20, 50, 40), 60, 80)
    drawn = np.asarray(draw_shapes(Image.new("RGB", (80, 60)), [Shape("x", 0, (30, 20, 50, 40), mask)]))
    assert drawn[30, 40].any()
    assert tuple(drawn[40, 40]) == (230, 25, 75)
    assert not drawn[50:, 60:].any()
