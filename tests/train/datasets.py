"""Small data sets on disk, as people have them: class folders, and parquet files of the Hub."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from eca_hub.models.config import ImageConfig

SMALL = ImageConfig(height_px=8, width_px=8, crop=1.0)


def png(shade: int, side_px: int = 12) -> bytes:
    """Encode an image of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px), (shade, 255 - shade, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_folder(root: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), num_each: int = 4) -> Path:
    """Write class folders of two classes; return the root."""
    for index, split in enumerate(splits):
        for shade, label in ((40 + 7 * index, "dark"), (200 + 7 * index, "light")):
            (root / split / label).mkdir(parents=True)
            for number in range(num_each):
                (root / split / label / f"{number}.png").write_bytes(png(shade + number))
    return root


def write_parquet(
    path: Path, labels: list[object], *, names: list[str] | None = None, image: str = "image", label: str = "label"
) -> None:
    """Write a file as `datasets` does."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    images = [{"bytes": png(index), "path": f"{index}.png"} for index in range(len(labels))]
    table = pa.table({image: images, label: labels})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def take_one_class(root: Path) -> None:
    """Hide one of the two classes."""
    for split in ("train", "val", "test"):
        (root / split / "light").rename(root / split / ".light")


def take_every_file(root: Path) -> None:
    """Leave the classes without images."""
    for path in root.rglob("*.png"):
        path.unlink()


def take_measured_splits(root: Path) -> None:
    """Leave nothing to measure on."""
    (root / "val").rename(root / "a")
    (root / "test").rename(root / "b")


def add_class_to_test(root: Path) -> None:
    """Give the test split a class that is not learnt."""
    (root / "test" / "dark").rename(root / "test" / "dusk")
