"""The images of the training bench, as class folders that every trainer reads: from a parquet file, or synthetic."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

_SYNTHETIC = {"photos": (348, 348, 34), "cifar10": (32, 32, 10)}
"""Width, height and classes."""


def write_images(root: Path, kind: str, num_images: int, num_val: int, data: str | None) -> None:
    """Write class folders train/ and val/.

    Args:
        root: Where to.
        kind: `photos` or `cifar10`: the size and number of classes of synthetic images.
        num_images: How many to train on.
        num_val: How many of them are in val/ as well.
        data: Folder with train.parquet; None: synthetic images.
    """
    images = read_parquet(Path(data), num_images) if data else synthetic(kind, num_images)
    for number, (content, label) in enumerate(images):
        splits = ["train", *(["val"] if number < num_val else [])]
        for split in splits:
            (root / split / label).mkdir(parents=True, exist_ok=True)
            (root / split / label / f"{number:06}.jpg").write_bytes(content)


def read_parquet(folder: Path, num_images: int) -> Iterator[tuple[bytes, str]]:
    """Images from all parts of a file, and their classes."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    table = pq.read_table(folder / "train.parquet", columns=["image", "label"])
    for index in range(num_images):
        row = table.slice(index * table.num_rows // num_images, 1).to_pylist()[0]
        yield row["image"]["bytes"], f"{row['label']:03}"


def synthetic(kind: str, num_images: int) -> Iterator[tuple[bytes, str]]:
    """JPEG images with as much detail as photos."""
    width, height, num_classes = _SYNTHETIC[kind]
    chance = random.Random(0)  # noqa: S311  images, not secrets
    for number in range(num_images):
        noise = Image.effect_noise((max(width // 4, 8), max(height // 4, 8)), 60 + chance.random() * 40)
        grey = noise.resize((width, height), Image.Resampling.BICUBIC)
        slope = Image.linear_gradient("L").resize((width, height)).rotate(chance.randrange(360))
        file = io.BytesIO()
        Image.merge("RGB", (grey, slope, Image.blend(grey, slope, 0.5))).save(file, "JPEG", quality=90)
        yield file.getvalue(), f"{number % num_classes:03}"
