"""Small COCO and YOLO data sets of drawn rectangles."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((64, 48), (48, 64), (60, 60), (80, 40), (40, 80), (64, 64))
CATEGORIES = [{"id": 7, "name": "disk"}, {"id": 3, "name": "bar"}, {"id": 90, "name": "far"}]


def coco_document(num_images: int = 6) -> dict[str, Any]:
    """Two objects an image but the last, which has none; one crowd region in the first."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_images):
        width, height = SIZES[number % len(SIZES)]
        # Ids out of order, as merged files have them.
        image_id = 1000 - 7 * number
        images.append({"id": image_id, "file_name": f"{number}.png", "width": width, "height": height})
        if number == num_images - 1:
            continue
        for index, category_id in enumerate((7, 3)):
            x, y, w, h = 4 + 10 * index, 5 + 3 * index, 16 + number, 12 + index
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    width, height = SIZES[0]
    crowd = {"size": [height, width], "counts": [0, 10, height * width - 10]}
    annotations.append(
        {
            "id": len(annotations) + 1,
            "image_id": 1000,
            "category_id": 7,
            "bbox": [0, 0, 1, 10],
            "area": 10,
            "iscrowd": 1,
            "segmentation": crowd,
        }
    )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_coco(root: Path, document: dict[str, Any] | None = None) -> Path:
    """Write the same annotations for train and val; return the root."""
    document = document or coco_document()
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (root / split).mkdir(exist_ok=True)
        draw_images(root / split, document)
    return root


def draw_images(folder: Path, document: dict[str, Any]) -> None:
    """Draw the boxes of a document, each class in its own color."""
    colors = {7: (230, 40, 40), 3: (40, 60, 230)}
    for image in document["images"]:
        pixels = np.full((image["height"], image["width"], 3), 128, np.uint8)
        for each in document["annotations"]:
            if each["image_id"] == image["id"] and not each.get("iscrowd") and each["category_id"] in colors:
                x, y, w, h = map(int, each["bbox"])
                pixels[y : y + h, x : x + w] = colors[each["category_id"]]
        Image.fromarray(pixels).save(folder / image["file_name"])


def write_yolo(root: Path, lines: dict[str, list[str]] | None = None) -> Path:
    """Write images/train, images/val, labels/train, labels/val and data.yaml; return the root."""
    lines = lines or {"a": ["0 0.5 0.5 0.25 0.5", "1 0.1 0.1 0.1 0.1"], "b": ["1 0.1 0.2 0.6 0.2 0.6 0.8"], "c": []}
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for name, text in lines.items():
            Image.new("RGB", (80, 40), (90, 90, 90)).save(root / "images" / split / f"{name}.png")
            if text:
                (root / "labels" / split / f"{name}.txt").write_text("\n".join(text) + "\n")
    (root / "data.yaml").write_text("names: {0: disk, 1: bar}\n")
    return root


def _tiff(path: Path) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size).save(path, "TIFF")


def _too_many_pixels(path: Path) -> None:
    content = path.read_bytes()
    header = b"IHDR" + (8000).to_bytes(4) * 2 + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:])


def _too_many_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(11 * 2**20))


def _pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def put_device(path: Path) -> None:
    """Put a link to a device in the place of a file."""
    path.unlink()
    path.symlink_to(os.devnull)


BROKEN: tuple[tuple[Callable[[Path], None], str], ...] = (
    (_tiff, "The file is a TIFF, which is not supported"),
    (_too_many_pixels, "The image is 8000 x 8000, 64.0 Mpx; the limit is 50 Mpx"),
    (_too_many_bytes, "The image has 11.0 MiB; the limit is 10 MiB"),
    (_pointer, "a pointer of Git LFS; `git lfs pull` fetches the image"),
    (put_device, "it is a pipe, a socket or a device, not a file"),
)
"""What makes a PNG one that is not decoded, and the reason that is named."""
