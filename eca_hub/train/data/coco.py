"""Objects from a COCO annotation file (`images`, `annotations`, `categories`).

Shapes: N objects of an image.
"""

import dataclasses
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.images.rle import read_counts
from eca_hub.train.data.objects import MIN_SIDE_PX, ImageObjects, Report, Split, check_files, count_objects

_MANY_OUTSIDE, _SOME_OUTSIDE = 0.5, 0.05
"""With more boxes than the first share far outside their image, they are x1, y1, x2, y2 where COCO has width and
height; with more than the second, if all of them would be such corners."""
_MANY_CORNERS = 0.5
"""With more boxes than this share whose area or outline is that of corners, the same."""
_FEWEST_BOXES = 8
"""From how few boxes nothing is concluded, unless areas or outlines say so."""
_FEW_SIZES = 0.05
"""So many areas are those of a width and a height by accident."""
_NUM_OUTLINES = 1000
"""Outlines that are compared with their boxes."""


_PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf")
"""How ZIP, gzip, bzip2, xz and 7z files begin."""


def read_coco(
    annotations: Path, images_dir: Path, *, with_masks: bool, classes: Sequence[tuple[int, str]] | None = None
) -> Split:
    """Read and check a COCO annotation file.

    Args:
        annotations: The JSON file.
        images_dir: Folder that `file_name` is relative to.
        with_masks: Whether each object must have a mask.
        classes: Id and name of each category of the training split, which other splits must share.

    Raises:
        InvalidConfig: it is not a COCO file, or has what cannot be trained on; every kind of fault is counted and the
            first few are named.
    """
    document = _read_document(annotations)
    report = Report(str(annotations))
    categories = _read_categories(document["categories"], report)
    if classes is not None:
        for category_id, name in categories:
            if (category_id, name) not in classes:
                report.refuse("categories that the training split does not have", f"{category_id}: {name}")
        categories = list(classes)
    index_of = {category_id: index for index, (category_id, _) in enumerate(categories)}
    images = _check_images(document["images"], images_dir, report)
    objects, maskless = _check_annotations(document["annotations"], images, index_of, report, with_masks=with_masks)
    report.raise_if_refused()
    image_objects = [_image_objects(images[image_id], objects[image_id], images_dir, with_masks) for image_id in images]
    image_objects = check_files(image_objects, report)
    report.raise_if_refused()
    count_objects(report, image_objects, len(categories))
    truth = {
        "images": [{"id": each["id"], "width": each["width"], "height": each["height"]} for each in images.values()],
        # Numbered again: files that were filtered or merged repeat ids, and evaluation would drop the repeated.
        "annotations": [
            {
                **each,
                "category_id": int(each["category_id"]),
                "area": _area(each),
                "iscrowd": int(each.get("iscrowd") or 0),
                "id": number,
                **_mask_of(each, images[each["image_id"]]),
            }
            for number, each in enumerate(document["annotations"], start=1)
            if number not in maskless
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in categories],
    }
    return Split(
        report.title,
        image_objects,
        [name for _, name in categories],
        [category_id for category_id, _ in categories],
        truth,
        report,
    )


def _area(annotation: Mapping[str, Any]) -> float:
    """Return the area of an object, and that of its box where the file has none."""
    area: Any = annotation.get("area")
    if _is_number(area) and area > 0:
        return float(area)
    return float(annotation["bbox"][2]) * float(annotation["bbox"][3])


def _mask_of(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """Return run-length code with a size in whole numbers, as the evaluation takes it; some tools write 480.0."""
    mask, size = annotation.get("segmentation"), [image["height"], image["width"]]
    return {"segmentation": {**mask, "size": size}} if isinstance(mask, dict) and mask.get("size") == size else {}


def _read_document(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if content.startswith(_PACKED):
            raise InvalidConfig(f"The annotation file {path} is a packed archive.", hint="Unpack it first.")
        document: Any = json.loads(content)
    except OSError as error:
        raise InvalidConfig(f"The annotation file {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"The annotation file {path} is not JSON: {error}.") from None
    missing = [
        name
        for name in ("images", "annotations", "categories")
        if not isinstance(document, dict) or not isinstance(document.get(name), list)
    ]
    if missing:
        raise InvalidConfig(
            f"{path} is not a COCO annotation file: it has no list of {' and '.join(missing)}.",
            hint="For a results file or another format, convert it first; YoloData reads YOLO text folders.",
        )
    if not all(isinstance(each, dict) for name in ("images", "annotations", "categories") for each in document[name]):
        raise InvalidConfig(f"{path} is not a COCO annotation file: an entry is not an object.")
    checked: dict[str, Any] = document
    return checked


def _read_categories(entries: Sequence[Mapping[str, Any]], report: Report) -> list[tuple[int, str]]:
    categories: list[tuple[int, str]] = []
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if type(category_id) is not int or not isinstance(name, str) or not name:
            report.refuse("categories without a whole number as id and a name", entry)
        else:
            categories.append((category_id, name))
    for position, kind in ((0, "categories with the id of another"), (1, "categories with the name of another")):
        for value, times in Counter(category[position] for category in categories).items():
            if times > 1:
                report.refuse(kind, value)
    if not categories:
        report.refuse("categories, where one is the least", "none")
    return sorted(categories)


def _check_images(
    entries: Sequence[Mapping[str, Any]], images_dir: Path, report: Report
) -> dict[int | str, Mapping[str, Any]]:
    images: dict[int | str, Mapping[str, Any]] = {}
    files: dict[Path, set[str]] = {}
    for entry in entries:
        image_id, name = entry.get("id"), entry.get("file_name")
        sides = (entry.get("width"), entry.get("height"))
        if not isinstance(image_id, int | str) or not isinstance(name, str) or not Path(name).name:
            report.refuse("images without id and file_name", str(entry)[:80])
        elif image_id in images:
            report.refuse("images with the id of another", image_id)
        elif any(type(side) is not int or not 1 <= side <= 65535 for side in sides):
            report.refuse("images without width and height in pixels", name)
        else:
            # Tools on Windows write `folder\\name`; a name may also have a backslash in it.
            spellings = dict.fromkeys((name, name.replace("\\", "/")))
            listed = next((each for each in spellings if _is_listed(images_dir / each, files)), None)
            images[image_id] = {**entry, "file_name": listed or name}
            if listed is None and any(_is_listed(images_dir.parent / each, files) for each in spellings):
                report.refuse(f"images missing in {images_dir}, though {images_dir.parent} has them", name)
            elif listed is None:
                report.refuse(f"images missing in {images_dir}", name)
    if not entries:
        report.refuse("images, where one is the least", "none")
    return images


def _is_listed(path: Path, files: dict[Path, set[str]]) -> bool:
    """Whether there is a file, by one listing a folder: asking for each of 118,000 takes minutes on a network disk."""
    if path.parent not in files:
        # Path.is_dir raises for a name that is too long.
        is_folder = os.path.isdir(path.parent)  # noqa: PTH112
        files[path.parent] = {each.name for each in path.parent.iterdir()} if is_folder else set()
    return path.name in files[path.parent]


def _check_annotations(
    entries: Sequence[Mapping[str, Any]],
    images: Mapping[int | str, Mapping[str, Any]],
    index_of: Mapping[int, int],
    report: Report,
    *,
    with_masks: bool,
) -> tuple[Mapping[int | str, list[tuple[list[float], int, Any]]], set[int]]:
    """Return box, class and mask of the objects of each image that can be learned from.

    With masks, also return the numbers of the boxes without an area whose mask cannot be evaluated either.
    """
    objects: dict[int | str, list[tuple[list[float], int, Any]]] = defaultdict(list)
    num_boxes = 0
    evidence = _Evidence()
    seen: set[str] = set()
    maskless: set[int] = set()
    for number, entry in enumerate(entries, start=1):
        annotation_id = entry.get("id", f"number {number}")
        name = f"annotation {annotation_id}"
        # As text: an id may be of any type, and is only counted.
        if str(annotation_id) in seen:
            report.leave_out("repeated annotation ids, numbered anew", annotation_id)
        seen.add(str(annotation_id))
        image_id: Any = entry.get("image_id")
        category_id: Any = entry.get("category_id")
        image = images.get(image_id) if _can_be_id(image_id) else None
        if image is None:
            report.refuse("annotations of images that are not listed", f"{name}: image {image_id}")
            continue
        if not _can_be_id(category_id) or category_id not in index_of:
            report.refuse("annotations of unknown categories", f"{name}: category {category_id!r}")
            continue
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(each) for each in box):
            report.refuse("boxes that are not four finite numbers", f"{name}: {box}")
            continue
        is_crowd = entry.get("iscrowd")
        if not isinstance(is_crowd, int | float | None) or is_crowd not in (0, 1, None):
            report.refuse("annotations whose iscrowd is neither 0 nor 1", f"{name}: {is_crowd!r}")
            continue
        mask = entry.get("segmentation")
        fault = find_mask_fault(mask, image["height"], image["width"]) if with_masks else ""
        if is_crowd:
            report.num_crowd += 1
            if fault:
                report.refuse(f"masks that {fault}", name)
            continue
        x, y, width, height = map(float, box)
        image_width, image_height = image["width"], image["height"]
        num_boxes += 1
        evidence.add((x, y, width, height), (image_width, image_height), entry.get("area"), entry.get("segmentation"))
        corners = [max(x, 0.0), max(y, 0.0), min(x + width, image_width), min(y + height, image_height)]
        if min(corners[2] - corners[0], corners[3] - corners[1]) < MIN_SIDE_PX:
            defect = "without an area" if min(width, height) < MIN_SIDE_PX else "outside their image"
            report.leave_out(f"boxes {defect}", f"{name}: {box}")
            if fault:
                maskless.add(number)
            continue
        if fault:
            report.refuse(f"masks that {fault}", name)
            continue
        objects[image["id"]].append((corners, index_of[category_id], mask if with_masks else None))
    if format_fault := evidence.fault():
        report.refuse(*format_fault)
    elif num_boxes and not objects and not report.refused:
        report.refuse("boxes, none of them with an area inside its image", f"{num_boxes} of {num_boxes}")
    elif evidence.is_suspicious():
        report.remarks.append(
            "in every box the third number is above the first and the fourth above the second, as in x1, y1, x2, y2; "
            "they are taken for COCO's x, y, width, height"
        )
    return objects, maskless


@dataclasses.dataclass
class _Evidence:
    """What speaks for boxes being x1, y1, x2, y2, where COCO has x, y, width, height."""

    num_boxes: int = 0
    num_far_outside: int = 0
    num_ascending: int = 0
    """Boxes whose third number is above the first, and the fourth above the second."""
    num_of_sizes: int = 0
    """Boxes whose area is that of a width and a height, or whose outline has them."""
    num_of_corners: int = 0
    """Boxes whose area is that between two corners, or whose outline has these corners."""
    num_comparable: int = 0
    """Boxes with an area or an outline to compare with."""
    num_outlines: int = 0

    def add(self, box: tuple[float, float, float, float], image_size: tuple[int, int], area: Any, outline: Any) -> None:
        """Count one box."""
        x, y, width, height = box
        slack_px = 2 + 0.02 * max(image_size)
        self.num_boxes += 1
        self.num_far_outside += x + width > image_size[0] + slack_px or y + height > image_size[1] + slack_px
        is_ascending = width > x and height > y
        self.num_ascending += is_ascending
        is_of_sizes = is_of_corners = False
        if _is_number(area) and area > 0:
            is_of_sizes = math.isclose(area, width * height, rel_tol=0.01, abs_tol=1)
            is_of_corners = math.isclose(area, (width - x) * (height - y), rel_tol=0.01, abs_tol=1)
        elif not (isinstance(outline, list) and outline):
            return
        if (
            isinstance(outline, list)
            and self.num_outlines < _NUM_OUTLINES
            and not find_mask_fault(outline, *image_size[::-1])
        ):
            self.num_outlines += 1
            xs, ys = [each for ring in outline for each in ring[::2]], [each for ring in outline for each in ring[1::2]]
            left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
            is_of_sizes |= _are_close(box, (left, top, right - left, bottom - top))
            is_of_corners |= _are_close(box, (left, top, right, bottom))
        self.num_comparable += 1
        self.num_of_sizes += is_of_sizes
        self.num_of_corners += is_ascending and is_of_corners and not is_of_sizes

    def fault(self) -> tuple[str, str] | None:
        """Return the kind of fault and how often it was found, if there is no doubt."""
        kind = ", where COCO has x, y, width, height"
        if self.num_of_corners > _MANY_CORNERS * self.num_comparable:
            frequency = f"{self.num_of_corners} of {self.num_comparable}"
            return f"mistake of format: boxes with the area or outline of x1, y1, x2, y2{kind}", frequency
        if self.num_far_outside > (_SOME_OUTSIDE if self.is_suspicious() else _MANY_OUTSIDE) * self.num_boxes:
            frequency = f"{self.num_far_outside} of {self.num_boxes}"
            return f"mistake of format: boxes reaching far outside their image, as x1, y1, x2, y2 do{kind}", frequency
        return None

    def is_suspicious(self) -> bool:
        """Whether all boxes could be corners, and hardly an area or outline says that they are not."""
        are_sizes = self.num_of_sizes > _FEW_SIZES * self.num_comparable
        return self.num_ascending == self.num_boxes >= _FEWEST_BOXES and not are_sizes


def _are_close(box: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= 1 for a, b in zip(box, other, strict=True))


def find_mask_fault(mask: Any, height: int, width: int) -> str:
    """Return what is wrong with a COCO segmentation; an empty string if it decodes."""
    if mask is None or mask == []:
        return "are absent"
    if isinstance(mask, list):
        if all(
            isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(_is_number(each) for each in ring)
            for ring in mask
        ):
            # Drawing takes memory by the length of the outline.
            is_near = all(
                min(ring[start::2]) >= -side and max(ring[start::2]) <= 2 * side
                for ring in mask
                for start, side in ((0, width), (1, height))
            )
            return "" if is_near else "reach far outside their image"
        return "are no polygons of three points or more"
    if not isinstance(mask, dict):
        return "are neither polygons nor run-length code"
    if mask.get("size") != [height, width]:
        return "have another size than their image"
    counts = mask.get("counts")
    try:
        runs = read_counts(counts) if isinstance(counts, str) else list(counts or ())
    except (ValueError, TypeError):
        return "do not decode"
    if not all(isinstance(run, int) for run in runs):
        return "do not decode"
    return "" if sum(runs) == height * width and all(run >= 0 for run in runs) else "do not decode"


def _can_be_id(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _is_number(value: Any) -> bool:
    # JSON may have a whole number that no float can hold.
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def _image_objects(
    image: Mapping[str, Any], objects: list[tuple[list[float], int, Any]], images_dir: Path, with_masks: bool
) -> ImageObjects:
    return ImageObjects(
        image["id"],
        str(images_dir / image["file_name"]),
        image["width"],
        image["height"],
        np.array([corners for corners, _, _ in objects], dtype=np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], dtype=np.int64),
        tuple(mask for _, _, mask in objects) if with_masks else None,
    )
