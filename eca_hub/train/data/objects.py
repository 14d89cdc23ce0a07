"""Images with the boxes and masks of their objects, and the checks that they pass before training.

What is wrong with annotations is collected by kind first. Kinds that training can do without are counted and left out;
the others are refused, all in one sentence.

Shapes: N objects of an image.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eca_hub.errors import BadImage, InvalidConfig
from eca_hub.images.files import open_file
from eca_hub.images.sizes import read_sizes
from eca_hub.train.data.source import broken_reason

MIN_SIDE_PX = 0.1
"""A box with a smaller side has no area: rounding while images are resized could make it empty."""
_NUM_NAMED = 3
_MAX_NAME_CHARS = 200
_SNIFFED_BYTES = 512


class ImageObjects(NamedTuple):
    """One image of a split, and the objects in it to learn from."""

    image_id: int | str
    """As the annotations have it; results are written with it."""
    path: str
    """The file."""
    width: int
    """In pixels, upright unless `is_unrotated`."""
    height: int
    boxes: np.ndarray
    """float32 (N, 4), x1, y1, x2, y2 in pixels, inside the image, each with an area."""
    labels: np.ndarray
    """int64 (N,), class of each object from 0."""
    masks: tuple[Any, ...] | None = None
    """The polygons or run-length code of each object, as COCO writes them; None for boxes only."""
    is_unrotated: bool = False
    """Whether the annotations are for the pixels as stored, before the EXIF orientation."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of a split, its classes, and what its predictions are evaluated against."""

    title: str
    """Name of the split in messages."""
    images: list[ImageObjects]
    labels: list[str]
    category_ids: list[int]
    """The id that COCO files have for each class."""
    ground_truth: Mapping[str, Any]
    """COCO's `images`, `annotations` and `categories`, with nothing left out."""
    report: "Report"


@dataclasses.dataclass
class Report:
    """What was found in the annotations of a split."""

    title: str
    num_images: int = 0
    num_empty: int = 0
    """Images without an object to learn from."""
    num_objects: int = 0
    """Boxes to learn from."""
    num_crowd: int = 0
    """Groups marked `iscrowd`: not learned from, and not counted against predictions."""
    num_masks: int = 0
    num_classes: int = 0
    num_absent_classes: int = 0
    """Classes without a box."""
    median_box_px: tuple[float, float] = (0.0, 0.0)
    max_objects: int = 0
    """Most boxes in one image."""
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Kind of fault to the names of what has it; training goes on without these."""
    refused: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Kind of fault to the names of what has it; training does not start."""

    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path of each file that the decoder would refuse by its header, and why; they count as broken images."""
    remarks: list[str] = dataclasses.field(default_factory=list)
    """What the user should look at, though training goes on."""

    def leave_out(self, kind: str, name: object) -> None:
        """Count a fault that training can do without."""
        self.left_out.setdefault(kind, []).append(_printable(name))

    def refuse(self, kind: str, name: object) -> None:
        """Count a fault that must be corrected."""
        self.refused.setdefault(kind, []).append(_printable(name))

    def raise_if_refused(self) -> None:
        """End with one sentence that names each kind of fault, how often it was found and where first.

        Raises:
            InvalidConfig: there are such faults.
        """
        if self.refused:
            raise InvalidConfig(f"{self.title} cannot be used: {_list_kinds(self.refused)}.")

    def summary(self) -> str:
        """Describe what was found in one or two lines of text."""
        width, height = self.median_box_px
        absent = f", {self.num_absent_classes} of them without a box" if self.num_absent_classes else ""
        crowd = f", {self.num_crowd} crowd regions" if self.num_crowd else ""
        masks = f", {self.num_masks} masks" if self.num_masks else ""
        empty = f" ({self.num_empty} without objects)" if self.num_empty else ""
        lines = [
            f"{self.title}: {self.num_images} images{empty}, {self.num_objects} boxes{masks}{crowd}, "
            f"{self.num_classes} classes{absent}, median box {width:.0f} x {height:.0f} px, at most "
            f"{self.max_objects} boxes in an image"
        ]
        if self.left_out:
            lines.append(f"{self.title}: left out {_list_kinds(self.left_out)}")
        lines += [f"{self.title}: {remark}" for remark in self.remarks]
        return "\n".join(lines)


def count_objects(report: Report, images: Sequence[ImageObjects], num_classes: int) -> None:
    """Fill in the numbers of a report."""
    boxes_N4 = np.concatenate([np.zeros((0, 4), np.float32), *(image.boxes for image in images)])
    counts = [len(image.boxes) for image in images]
    present = {int(label) for image in images for label in image.labels}
    report.num_images = len(images)
    report.num_empty = counts.count(0)
    report.num_objects = len(boxes_N4)
    report.num_masks = sum(len(image.masks) for image in images if image.masks is not None)
    report.num_classes = num_classes
    report.num_absent_classes = num_classes - len(present)
    report.max_objects = max(counts, default=0)
    if len(boxes_N4):
        width, height = np.median(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=0).tolist()
        report.median_box_px = (width, height)


def keep_smallest(split: Split, num_images: int) -> Split:
    """Keep the images with the fewest objects, one at least in each, to find out whether a network learns at all.

    Raises:
        InvalidConfig: there are not so many.
    """
    with_objects = [image for image in split.images if len(image.boxes)]
    if len(with_objects) < num_images:
        raise InvalidConfig(f"{split.title} has {len(with_objects)} images with objects, fewer than {num_images}.")
    kept = sorted(with_objects, key=lambda image: (len(image.boxes), str(image.image_id)))[:num_images]
    ids = {image.image_id for image in kept}
    truth = {
        **split.ground_truth,
        "images": [each for each in split.ground_truth["images"] if each["id"] in ids],
        "annotations": [each for each in split.ground_truth["annotations"] if each["image_id"] in ids],
    }
    paths = {image.path for image in kept}
    report = Report(
        split.report.title,
        num_crowd=sum(each["iscrowd"] for each in truth["annotations"]),
        left_out=split.report.left_out,
        broken={path: reason for path, reason in split.report.broken.items() if path in paths},
        remarks=split.report.remarks,
    )
    count_objects(report, kept, len(split.labels))
    return dataclasses.replace(split, images=kept, ground_truth=truth, report=report)


def read_sizes_or_report(path: str, report: Report) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Read width and height of an image, as stored and as displayed; one that would not decode is reported as broken.

    Such an image stays in its split, so that the run names it when it decodes it.
    """
    try:
        return read_sizes(path)
    except (BadImage, OSError) as error:
        report.broken[path] = reason_of_file(error, path)
        return None


def reason_of_file(error: BadImage | OSError, path: str) -> str:
    """Return why an image file is broken; it may be a pointer."""
    head = b""
    with contextlib.suppress(OSError), open_file(path) as file:
        head = file.read(_SNIFFED_BYTES)
    return broken_reason(error, head)


def check_files(images: Sequence[ImageObjects], report: Report) -> list[ImageObjects]:
    """Compare the size of every file with its annotation, from its header alone.

    A file that is turned by its EXIF orientation may be annotated as it is displayed or as it is stored: the sizes
    show which.
    """
    checked = []
    for image in images:
        sizes = read_sizes_or_report(image.path, report)
        if sizes is None:
            checked.append(image)
            continue
        stored, displayed = sizes
        annotated = (image.width, image.height)
        if annotated == displayed:
            checked.append(image)
        elif annotated == stored:
            checked.append(image._replace(is_unrotated=True))
        else:
            report.refuse(
                "images of another size than annotated",
                f"{Path(image.path).name}: {displayed[0]} x {displayed[1]}, annotated {annotated[0]} x {annotated[1]}",
            )
    return checked


def _printable(name: object) -> str:
    # JSON may hold half of a character, which no output can encode.
    return str(name)[:_MAX_NAME_CHARS].encode("utf-8", "backslashreplace").decode()


def _list_kinds(names_by_kind: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:_NUM_NAMED])}{', ...' if len(names) > _NUM_NAMED else ''})"
        for kind, names in names_by_kind.items()
    )
