"""Objects from YOLO text folders: one .txt beside each image, a line an object, numbers as shares of the image.

    class center_x center_y width height          a box
    class x1 y1 x2 y2 x3 y3 ...                   a polygon, whose box is the one around it
    class center_x center_y width height points   a box and keypoints, where data.yaml has kpt_shape

Shapes: N objects of an image.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eca_hub.errors import InvalidConfig
from eca_hub.images.folders import kind_of, walk_files
from eca_hub.train.data.objects import (
    MIN_SIDE_PX,
    ImageObjects,
    Report,
    Split,
    count_objects,
    read_sizes_or_report,
)
from eca_hub.train.data.source import pointer_in

_SPLIT_NAMES = {"train": ("train", "train2017"), "val": ("val", "valid", "validation", "val2017"), "test": ("test",)}
_UNDECODED_SUFFIXES = frozenset([".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2"])
"""Of images that other tools train on; here they count as broken."""
_SLACK = 0.01
"""A center and a width that were rounded may reach a little outside."""


def read_class_names(root: Path) -> list[str]:
    """Read the class names from `data.yaml` or another YAML file with `names`, or from `classes.txt`.

    Raises:
        InvalidConfig: there is no such file, or its names are none.
    """
    path, document = _dataset_yaml(root)
    if document.get("names") is not None:
        return _checked_names(document["names"], document.get("nc"), path)
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
            return _checked_names(names, None, path)
    raise InvalidConfig(
        f"{root} has no class names.", hint="Add a data.yaml with names: [...], or a classes.txt with one a line."
    )


def find_images_dir(root: Path, split: str) -> Path | None:
    """Find the folder with the images of a split: the one in data.yaml, images/SPLIT or SPLIT/images.

    Raises:
        InvalidConfig: data.yaml gives another one, which is not there.
    """
    path, document = _dataset_yaml(root)
    folders = (folder for name in _SPLIT_NAMES[split] for folder in (root / "images" / name, root / name / "images"))
    usual = next((folder for folder in folders if folder.is_dir()), None)
    given = next((document[name] for name in _SPLIT_NAMES[split] if document.get(name)), None)
    if given is None:
        return usual
    if isinstance(given, list) and len(given) == 1:
        [given] = given
    if not isinstance(given, str) or given.endswith(".txt"):
        if split == "test":
            return usual
        raise InvalidConfig(
            f"{path} gives {str(given)[:80]!r} for {split}, where one folder is read.",
            hint=f"Remove this line to read all of {usual}."
            if usual
            else "Put the images and labels of the split into one folder with sub-folders, and give that.",
        )
    # Written on Windows, or for the folder of another machine or the one above.
    given = given.replace("\\", "/")
    below = [part for part in given.split("/") if part not in ("..", ".", "")]
    for folder in (root / str(document.get("path") or "") / given, root / given, root.joinpath(*below)):
        if folder.is_dir():
            return folder / "images" if (folder / "images").is_dir() and folder.name != "images" else folder
    if usual is not None and {*below[-2:]} - {"images"} <= {*_SPLIT_NAMES[split]}:
        return usual
    if split == "test":
        return None
    raise InvalidConfig(f"{path} gives {given[:80]!r} for {split}, and there is no such folder.")


def count_keypoint_numbers(root: Path) -> int:
    """Return how many numbers of keypoints follow each box: the product of `kpt_shape` in data.yaml, or 0.

    Raises:
        InvalidConfig: `kpt_shape` is not two whole numbers.
    """
    path, document = _dataset_yaml(root)
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(each) is int and each > 0 for each in shape)
    if not is_shape:
        raise InvalidConfig(
            f"kpt_shape in {path} is {str(shape)[:40]}; it must be the number of keypoints and 2 or 3 numbers of each."
        )
    return int(math.prod(shape))


def read_yolo(images_dir: Path, labels: Sequence[str], *, with_masks: bool, num_keypoint_numbers: int = 0) -> Split:
    """Read and check the images and text files of a split.

    Args:
        images_dir: Folder with the images; the text files are in the folder named `labels` where it has `images`.
        labels: Class names.
        with_masks: Whether each object must be a polygon.
        num_keypoint_numbers: Numbers of keypoints after each box, which are left out.

    Raises:
        InvalidConfig: a line cannot be trained on; every kind of fault is counted and the first few are named.
    """
    labels_dir = _labels_dir(images_dir)
    report = Report(str(images_dir))
    paths = _find_images(images_dir, report)
    if not paths:
        raise InvalidConfig(f"{images_dir} has no images.")
    texts = {
        path.relative_to(labels_dir).with_suffix(""): path
        for path in walk_files(labels_dir)
        if path.suffix.lower() == ".txt"
    }
    texts.pop(Path("classes"), None)
    if not texts:
        raise InvalidConfig(f"{labels_dir} has no text files with boxes for the images of {images_dir}.")
    images = []
    for number, path in enumerate(paths, start=1):
        sizes = read_sizes_or_report(str(path), report)
        if sizes is None:
            # Its boxes are shares of a size that is not known.
            no_boxes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), () if with_masks else None
            images.append(ImageObjects(number, str(path), 1, 1, *no_boxes))
            continue
        key = path.relative_to(images_dir).with_suffix("")
        lines = _read_lines(texts[key], report) if key in texts else []
        images.append(
            _read_objects(number, path, sizes[1], lines, len(labels), report, with_masks, num_keypoint_numbers)
        )
    for key in sorted(texts.keys() - {path.relative_to(images_dir).with_suffix("") for path in paths}):
        report.leave_out("text files without an image", f"{key}.txt")
    report.raise_if_refused()
    if num_keypoint_numbers:
        report.remarks.append("keypoints are left out, boxes are learned")
    if not any(len(image.boxes) for image in images) and not report.broken:
        report.refuse("images, none of them with a box", len(images))
        report.raise_if_refused()
    count_objects(report, images, len(labels))
    category_ids = list(range(1, len(labels) + 1))
    return Split(report.title, images, list(labels), category_ids, _ground_truth(images, labels), report)


def _find_images(images_dir: Path, report: Report) -> list[Path]:
    """Return the images of a split in the order of their names; other files are reported as left out."""
    kinds = {path: kind_of(path) for path in sorted(walk_files(images_dir))}
    decoded = {path.with_suffix("") for path, kind in kinds.items() if kind == "image"}
    paths = []
    for path, kind in kinds.items():
        is_image = path.suffix.lower() in _UNDECODED_SUFFIXES and path.with_suffix("") not in decoded
        if kind == "image" or is_image:
            paths.append(path)
        elif kind == "unsupported":
            report.leave_out("files that are not decoded", path.name)
    return paths


def _read_objects(
    number: int,
    path: Path,
    size: tuple[int, int],
    lines: Sequence[str],
    num_classes: int,
    report: Report,
    with_masks: bool,
    num_keypoint_numbers: int,
) -> ImageObjects:
    width, height = size
    boxes: list[list[float]] = []
    classes: list[int] = []
    masks: list[Any] = []
    seen: set[str] = set()
    for line_number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        name = f"{path.stem}.txt line {line_number}"
        fault, label, numbers = _read_line(fields, num_classes, num_keypoint_numbers)
        if fault:
            report.refuse(fault, f"{name}: {line.strip()[:40]}")
            continue
        if " ".join(fields) in seen:
            report.leave_out("repeated lines", name)
            continue
        seen.add(" ".join(fields))
        is_polygon = len(numbers) > 4
        if with_masks and not is_polygon:
            report.refuse("boxes without the polygon that a mask needs", name)
            continue
        xs, ys = numbers[0::2], numbers[1::2]
        if is_polygon:
            corners = [min(xs), min(ys), max(xs), max(ys)]
        else:
            x, y, w, h = numbers
            corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        clipped = [min(max(each, 0.0), 1.0) * side for each, side in zip(corners, (width, height) * 2, strict=True)]
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < MIN_SIDE_PX:
            report.leave_out("boxes without an area", name)
            continue
        boxes.append(clipped)
        classes.append(label)
        points = [each * side for each, side in zip(numbers, (width, height) * (len(numbers) // 2), strict=True)]
        masks.append([points] if is_polygon else None)
    return ImageObjects(
        number,
        str(path),
        width,
        height,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(classes, dtype=np.int64),
        tuple(masks) if with_masks else None,
    )


def _read_line(fields: Sequence[str], num_classes: int, num_keypoint_numbers: int) -> tuple[str, int, list[float]]:
    """Return what is wrong with a line, or an empty string, its class, and its numbers after the class."""
    try:
        number_of_class, *numbers = [float(field) for field in fields]
    except ValueError:
        return "lines that are not numbers", 0, []
    # numpy.savetxt writes the class like the other numbers: 1.000000e+00.
    if not number_of_class.is_integer() or not 0 <= number_of_class < num_classes:
        return f"lines with a class that is not 0 to {num_classes - 1}", 0, []
    fault = ""
    if num_keypoint_numbers:
        if len(numbers) != 4 + num_keypoint_numbers:
            return f"lines without the 4 numbers of a box and {num_keypoint_numbers} of kpt_shape", 0, []
        numbers = numbers[:4]
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        fault = "lines that have neither four numbers nor the points of a polygon"
    elif not all(map(math.isfinite, numbers)):
        fault = "lines with NaN or infinity"
    elif not all(-_SLACK <= number <= 1 + _SLACK for number in numbers):
        fault = "lines with numbers outside 0 to 1, as pixels are"
    elif len(numbers) == 4:
        x, y, w, h = numbers
        if max(x + w / 2, y + h / 2) > 1 + _SLACK or min(x - w / 2, y - h / 2) < -_SLACK:
            fault = "boxes reaching outside their image, as x1 y1 x2 y2 do where center, width and height are meant"
    return fault, int(number_of_class), numbers


def _ground_truth(images: Sequence[ImageObjects], labels: Sequence[str]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in images:
        for index, (box, label) in enumerate(zip(image.boxes.tolist(), image.labels.tolist(), strict=True)):
            x1, y1, x2, y2 = box
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image.image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            if image.masks is not None:
                annotation["segmentation"] = image.masks[index]
            annotations.append(annotation)
    return {
        "images": [{"id": each.image_id, "width": each.width, "height": each.height} for each in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(labels, start=1)],
    }


def _labels_dir(images_dir: Path) -> Path:
    parts = list(images_dir.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    folder = Path(*parts)
    if folder == images_dir or not folder.is_dir():
        raise InvalidConfig(f"There is no folder {folder} with the text files for the images of {images_dir}.")
    return folder


def _dataset_yaml(root: Path) -> tuple[Path, dict[str, Any]]:
    """Read data.yaml, or else the first YAML file with `names`; other tools keep YAML files beside it."""
    path = root / "data.yaml"
    if path.is_file():
        return path, _read_yaml(path)
    refusal = None
    for other in sorted(each for each in root.glob("*.y*ml") if each.is_file()):
        try:
            document = _read_yaml(other)
        except InvalidConfig as error:
            refusal = refusal or error
            continue
        if document.get("names") is not None:
            return other, document
    if refusal is not None:
        raise refusal
    return path, {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(_read_text(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidConfig(f"{path} is not YAML: {' '.join(str(error).split())[:160]}.") from None
    return document if isinstance(document, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path} is not UTF-8 text.", hint="Save it as UTF-8.") from None


def _read_lines(path: Path, report: Report) -> list[str]:
    """Read the lines of a text file with boxes; what is none is refused."""
    try:
        content = path.read_bytes()
    except OSError as error:
        report.refuse("text files that cannot be read", f"{path.name}: {error.strerror}")
        return []
    if pointer := pointer_in(content):
        report.refuse(f"text files that are pointers of {pointer.tool}; `{pointer.command}` fetches them", path.name)
        return []
    return content.decode("utf-8-sig", "replace").splitlines()


def _checked_names(names: Any, num_classes: Any, path: Path) -> list[str]:
    if isinstance(names, dict):
        by_number = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in names.items()}
        if by_number.keys() != set(range(len(names))):
            raise InvalidConfig(f"names in {path} are numbered {list(names)[:5]}; number them from 0.")
        names = [by_number[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InvalidConfig(f"names in {path} is no list of class names.")
    # The digits 0 to 9 are usual classes, and YAML reads them as numbers.
    labels: list[str] = [str(name) if type(name) is int else name for name in names]
    for name in labels:
        if not isinstance(name, str) or not name.strip():
            raise InvalidConfig(
                f"names in {path} is no list of class names: it holds {name!r}.",
                hint="YAML reads yes, no, on, off and null as other values: put such names in quotes.",
            )
    if len(set(labels)) < len(labels):
        raise InvalidConfig(f"names in {path} has a name twice.")
    if num_classes not in (None, len(labels)):
        raise InvalidConfig(f"{path} has {len(labels)} names, and nc is {str(num_classes)[:20]}.", hint="Correct one.")
    return labels
