"""Objects from YOLO text folders: one .txt beside each image, a line an object, numbers as shares of the image.

    class center_x center_y width height          a box
    class x1 y1 x2 y2 x3 y3 ...                   a polygon, whose box is the one around it

Shapes: N objects of an image.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from eca_hub.errors import InvalidConfig
from eca_hub.images.folders import walk_files
from eca_hub.train.data.objects import MIN_SIDE_PX, ImageObjects, Report, Split, count_objects

_SPLIT_NAMES = {"train": ("train", "train2017"), "val": ("val", "valid", "validation", "val2017"), "test": ("test",)}
_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif"])
_SLACK = 0.01
"""A center and a width that were rounded may reach a little outside."""
_EXIF_ORIENTATION = 0x0112


def read_class_names(root: Path) -> list[str]:
    """Read the class names from `data.yaml` or another YAML file with `names`, or from `classes.txt`.

    Raises:
        InvalidConfig: there is no such file, or its names are none.
    """
    for path in sorted(root.glob("*.y*ml"), key=lambda path: path.name != "data.yaml"):
        names = _read_yaml(path).get("names")
        if names is not None:
            return _checked_names(names, path)
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            return _checked_names(names, path)
    raise InvalidConfig(
        f"{root} has no class names.", hint="Add a data.yaml with names: [...], or a classes.txt with one a line."
    )


def find_images_dir(root: Path, split: str) -> Path | None:
    """Find the folder with the images of a split: the one in data.yaml, images/SPLIT or SPLIT/images."""
    for path in sorted(root.glob("*.y*ml"), key=lambda path: path.name != "data.yaml"):
        document = _read_yaml(path)
        given = document.get(split)
        if isinstance(given, str):
            for base in (root / str(document.get("path", "")), root):
                if (base / given).is_dir():
                    return base / given
    for name in _SPLIT_NAMES[split]:
        for folder in (root / "images" / name, root / name / "images"):
            if folder.is_dir():
                return folder
    return None


def read_yolo(images_dir: Path, labels: Sequence[str], *, with_masks: bool) -> Split:
    """Read and check the images and text files of a split.

    Args:
        images_dir: Folder with the images; the text files are in the folder named `labels` where it has `images`.
        labels: Class names.
        with_masks: Whether each object must be a polygon.

    Raises:
        InvalidConfig: a line cannot be trained on; every kind of fault is counted and the first few are named.
    """
    labels_dir = _labels_dir(images_dir)
    report = Report(str(images_dir))
    paths = sorted(path for path in walk_files(images_dir) if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise InvalidConfig(f"{images_dir} has no images.")
    texts = {path.relative_to(labels_dir).with_suffix("") for path in walk_files(labels_dir) if path.suffix == ".txt"}
    texts.discard(Path("classes"))
    if not texts:
        raise InvalidConfig(f"{labels_dir} has no text files with boxes for the images of {images_dir}.")
    images = []
    for number, path in enumerate(paths, start=1):
        size = _displayed_size(path)
        if size is None:
            report.leave_out("images that cannot be read", path.name)
            continue
        key = path.relative_to(images_dir).with_suffix("")
        lines = []
        if key in texts:
            lines = (labels_dir / f"{key}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        images.append(_read_objects(number, path, size, lines, len(labels), report, with_masks))
    for key in sorted(texts - {path.relative_to(images_dir).with_suffix("") for path in paths}):
        report.leave_out("text files without an image", f"{key}.txt")
    report.raise_if_refused()
    if not any(len(image.boxes) for image in images):
        report.refuse("images, none of them with a box", len(images))
        report.raise_if_refused()
    count_objects(report, images, len(labels))
    category_ids = list(range(1, len(labels) + 1))
    return Split(report.title, images, list(labels), category_ids, _ground_truth(images, labels), report)


def _read_objects(
    number: int,
    path: Path,
    size: tuple[int, int],
    lines: Sequence[str],
    num_classes: int,
    report: Report,
    with_masks: bool,
) -> ImageObjects:
    width, height = size
    boxes: list[list[float]] = []
    classes: list[int] = []
    masks: list[Any] = []
    seen: set[str] = set()
    for line_number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        name = f"{path.stem}.txt line {line_number}"
        fault, numbers = _read_line(words, num_classes)
        if fault:
            report.refuse(fault, f"{name}: {line.strip()[:40]}")
            continue
        if " ".join(words) in seen:
            report.leave_out("repeated lines", name)
            continue
        seen.add(" ".join(words))
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
        classes.append(int(words[0]))
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


def _read_line(words: Sequence[str], num_classes: int) -> tuple[str, list[float]]:
    """Return what is wrong with a line, or an empty string, and its numbers after the class."""
    try:
        numbers = [float(word) for word in words[1:]]
        number_of_class = float(words[0])
    except ValueError:
        return "lines that are not numbers", []
    if not number_of_class.is_integer() or not 0 <= number_of_class < num_classes or "." in words[0]:
        return f"lines with a class that is not 0 to {num_classes - 1}", []
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        return "lines that have neither four numbers nor the points of a polygon", []
    if not all(map(math.isfinite, numbers)):
        return "lines with NaN or infinity", []
    if not all(-_SLACK <= number <= 1 + _SLACK for number in numbers):
        return "lines with numbers outside 0 to 1, as pixels are", []
    if len(numbers) == 4:
        x, y, w, h = numbers
        if max(x + w / 2, y + h / 2) > 1 + _SLACK or min(x - w / 2, y - h / 2) < -_SLACK:
            return "boxes reaching outside their image, as x1 y1 x2 y2 do where center, width and height are meant", []
    return "", numbers


def _ground_truth(images: Sequence[ImageObjects], labels: Sequence[str]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in images:
        for place, (box, label) in enumerate(zip(image.boxes.tolist(), image.labels.tolist(), strict=True)):
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
                annotation["segmentation"] = image.masks[place]
            annotations.append(annotation)
    return {
        "images": [{"id": each.image_id, "width": each.width, "height": each.height} for each in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(labels, start=1)],
    }


def _displayed_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as file:
            width, height = file.size
            is_turned = file.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except OSError:
        return None
    return (height, width) if is_turned else (width, height)


def _labels_dir(images_dir: Path) -> Path:
    parts = list(images_dir.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    folder = Path(*parts)
    if folder == images_dir or not folder.is_dir():
        raise InvalidConfig(f"There is no folder {folder} with the text files for the images of {images_dir}.")
    return folder


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidConfig(f"{path} is not YAML: {' '.join(str(error).split())[:160]}.") from None
    return document if isinstance(document, dict) else {}


def _checked_names(names: Any, path: Path) -> list[str]:
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise InvalidConfig(f"names in {path} are numbered {sorted(names)[:5]}; number them from 0.")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidConfig(f"names in {path} is no list of class names.")
    if len(set(names)) < len(names):
        raise InvalidConfig(f"names in {path} has a name twice.")
    return names
