"""A folder of class folders: ImageNet's layout, and what most people have."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.datamodule import ImageDataModule, check_labels, fill_missing_split
from eca_hub.train.data.source import Split, fingerprint_of

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}


class ImageFolderData(ImageDataModule):
    """Pictures sorted into folders: root/train/CLASS/any/name.jpg, beside val/ and test/.

    One of val and test may be missing: the other then stands for both, and the result and the model card say so.

    Args:
        root: The folder with `train` in it.
        options: Those of all data: image, augment, batch_size, num_workers, cache_mib, max_bad_samples.

    Raises:
        InvalidConfig: a folder is missing, empty, or has a class that the train split has not.
    """

    def __init__(self, root: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.title = Path(root).name or "pictures"
        self._root = Path(root)
        if not self._root.is_dir():
            raise InvalidConfig(f"There is no folder {root}.", hint="Give --data.root.")
        found = self._find_splits()
        self.labels = _classes(found["train"])
        for split, folder in found.items():
            check_labels(self.labels, _classes(folder), split, self.title)
        self.has_single_eval_split = len(found) < 3
        self._folders = fill_missing_split(found)

    def source(self, split: Split) -> "ImageFolderSource":
        """Return the files of a split."""
        return ImageFolderSource(self._folders[split], self.labels)

    def _find_splits(self) -> dict[str, Path]:
        found = {
            split: self._root / name
            for split, names in _NAMES.items()
            for name in names
            if (self._root / name).is_dir()
        }
        if "train" not in found:
            raise InvalidConfig(
                f"{self._root} has no folder train; it needs train/CLASS/*.jpg, and val or test beside train.",
                hint=f"It holds: {', '.join(sorted(each.name for each in self._root.iterdir())[:5]) or 'nothing'}.",
            )
        if "val" not in found and "test" not in found:
            raise InvalidConfig(f"{self._root} has neither a folder val nor a folder test to measure on.")
        return found


class ImageFolderSource:
    """The files below the class folders of one split, in the order of their names.

    Args:
        folder: The split.
        labels: Class names in the order of their indices.
    """

    def __init__(self, folder: Path, labels: list[str]) -> None:
        self._folder = folder
        files = [(path, target) for target, label in enumerate(labels) for path in _pictures_below(folder / label)]
        self._names = [os.path.relpath(path, folder) for path, _ in files]
        self.targets = np.array([target for _, target in files], dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return one file."""
        return (self._folder / self._names[index]).read_bytes()

    def name(self, index: int) -> str:
        """Say where it lies."""
        return str(self._folder / self._names[index])

    def fingerprint(self) -> str:
        """Hash names and sizes: reading a million files would take longer than an epoch."""
        return fingerprint_of(f"{name} {(self._folder / name).stat().st_size}" for name in self._names)


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InvalidConfig(f"{folder} has no class folders; pictures lie in {folder.name}/CLASS/*.jpg.")
    empty = [name for name in names if next(_pictures_below(folder / name, first_only=True), None) is None]
    if len(empty) == len(names):
        raise InvalidConfig(f"The class folders in {folder} hold no pictures ({', '.join(_ENDINGS)}).")
    return [name for name in names if name not in empty]


def _pictures_below(folder: Path, *, first_only: bool = False) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(_ENDINGS):
                yield Path(where) / name
                if first_only:
                    return
