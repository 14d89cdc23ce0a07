"""Folders of class folders: ImageNet's layout, root/train/CLASS/name.jpg beside val/ and test/."""

import filecmp
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.images.containers import FORMATS
from eca_hub.images.files import read_file
from eca_hub.images.folders import IMAGE_ENDINGS, is_ignored, kind_of, walk_files
from eca_hub.paths import expand_home
from eca_hub.train.data.datamodule import FileDataModule, check_labels
from eca_hub.train.data.labels import label_name
from eca_hub.train.data.source import UNLABELED, Split, fingerprint_of, readable_name

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_ENDING = r"[\s_-]*(set|data|dataset|split|images?|imgs?|pictures|\d{4})?\s*"
"""What may follow the name of a split, as in trainset, val_images or test2017."""
_ARCHIVE_ENDINGS = (".zip", ".tar.gz", ".tgz", ".7z", ".rar")
_SEARCHED_LEVELS, _SEARCHED_FOLDERS = 3, 20
_NUM_COMPARED = 16
_OTHER_DATA = ((".parquet", "ParquetData"), (".csv", "CsvData"), (".tsv", "CsvData"), (".tar", "WebDatasetData"))


class ImageFolderData(FileDataModule):
    """Images sorted into folders: root/train/CLASS/any/name.jpg, beside val/ and test/.

    One of val and test may be missing: the other then serves as both, and the result and the model card say so. With
    val_fraction, root may also hold only train/, or the class folders themselves. A test folder without class folders
    has no labels: `eca-hub predict` classifies it.

    Args:
        root: The folder with `train` in it.
        options: val_fraction, image, augment, batch_size, num_workers, cache_mib, max_bad_samples, balanced_sampling.

    Raises:
        InvalidConfig: a folder is missing or empty, or has a class that the train split does not have.
    """

    def __init__(self, root: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._root = expand_home(root)
        if not self._root.is_dir():
            raise _no_folder(root)
        self.title = readable_name(self._root.resolve().name) or "images"
        folders_by_split = {split: _ClassFolders(folder) for split, folder in self._find_splits().items()}
        self.labels = self._labels(folders_by_split["train"], "train")
        sources: dict[Split, ImageFolderSource] = {}
        for split, folders in folders_by_split.items():
            if split == "test" and not folders.classes and folders.loose:
                sources[split] = ImageFolderSource.of_unlabeled(folders)
                continue
            if split != "train":
                check_labels(self.labels, self._labels(folders, split), split, self.title)
            sources[split] = ImageFolderSource(folders, self.labels)
            if split != "train" and (copy := sources[split].find_copy(sources["train"])):
                self.remarks.append(
                    f"The {split} split has images of the train split, such as {copy}; results on them say nothing "
                    "about new images."
                )
        self.use_splits(sources, str(self._root))

    def _labels(self, folders: "_ClassFolders", split: Split) -> list[str]:
        """Return the classes of a split that have images, and remark on what is left out."""
        folder = readable_name(str(folders.folder))
        if not folders.classes:
            hint = f"Images are expected in {folder}/CLASS/*.jpg."
            if folders.loose and any(folders.folder.glob("*.csv")):
                hint = "If a CSV file names the classes, give --data CsvData --data.root FILE.csv."
            raise InvalidConfig(f"{folder} has no class folders.", hint=hint)
        for label, scan in folders.classes.items():
            if not scan.paths and scan.unsupported:
                raise InvalidConfig(
                    f"The class folder {folder}/{label} has no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image; it "
                    f"holds {_listing(scan.unsupported)}.",
                    hint="Convert its files, or move the folder away.",
                )
        labels = sorted(label for label, scan in folders.classes.items() if scan.paths)
        if not labels:
            raise InvalidConfig(f"The class folders in {folder} hold no images ({', '.join(IMAGE_ENDINGS)}).")
        if empty := sorted(folders.classes.keys() - set(labels)):
            self.remarks.append(f"{folder}: folders without images are left out: {_names(empty)}.")
        if folders.parent_links:
            self.remarks.append(f"{folder}: links to a parent folder are left out: {_names(folders.parent_links)}.")
        if split == "train":
            self._remark_on_similar_names(labels)
        unsupported = sum((scan.unsupported for scan in folders.classes.values()), Counter[str]())
        if unsupported:
            self.remarks.append(f"{folder}: files that are not decoded are left out: {_listing(unsupported)}.")
        if folders.loose:
            self.remarks.append(f"{folder}: {len(folders.loose)} images in no class folder are left out.")
        return labels

    def _remark_on_similar_names(self, labels: list[str]) -> None:
        """Remark on classes whose names differ only in case: file systems that ignore case make them one folder."""
        by_folded: dict[str, list[str]] = {}
        for label in labels:
            by_folded.setdefault(label.casefold(), []).append(label)
        for variants in by_folded.values():
            if len(variants) > 1:
                self.remarks.append(f"The classes {' and '.join(variants)} differ only in case; are they one class?")

    def _find_splits(self) -> dict[Split, Path]:
        folders = _subfolders(self._root)
        split_dirs: dict[Split, Path] = {}
        for split in _SPLIT_NAMES:
            matching = [folder for folder in folders if _is_split(folder, split)]
            if len(matching) > 1:
                raise InvalidConfig(
                    f"{self._root} has {' and '.join(folder.name for folder in matching)}; which is the {split} split?",
                    hint="Keep one of them there.",
                )
            split_dirs |= dict.fromkeys([split], matching[0]) if matching else {}
        if "train" in split_dirs:
            if others := [readable_name(folder.name) for folder in folders if folder not in split_dirs.values()]:
                self.remarks.append(
                    f"{self._root}: folders that are no split (train, val or test) are left out: {_names(others)}."
                )
            return split_dirs
        inner = [folder for folder in _folders_below(folders) if _has_train(folder)]
        if len(inner) > 1 and len(inner) == len(folders):
            raise InvalidConfig(
                f"{self._root} sorts images by class first, then by split: {inner[0].name}/train. It needs "
                f"train/{inner[0].name}.",
                hint="Move the folders, or list the images in a CSV file and give --data CsvData --data.root FILE.csv.",
            )
        if inner:
            raise InvalidConfig(
                f"{self._root} has no folder train, but {inner[0]} has.", hint=f"Give --data.root {inner[0]}."
            )
        looks_split = [folder for folder in folders if _split_in(folder.name)]
        if not split_dirs and len(folders) > 1 and self.val_fraction and len(looks_split) < len(folders):
            return {"train": self._root}
        raise self._no_train(folders, looks_split)

    def _no_train(self, folders: list[Path], looks_split: list[Path]) -> InvalidConfig:
        """Describe what the folder holds instead of `train`, and what to type."""
        for folder in looks_split if len(looks_split) == len(folders) else []:
            if (split := _split_in(folder.name)) == "train":
                return InvalidConfig(
                    f"{self._root} has no folder train; it has the folders {_names(each.name for each in folders)}.",
                    hint=f"If {folder.name} is the {split} split: mv {folder} {folder.with_name('train')}; rename the "
                    "others to val and test.",
                )
        for folder in _folders_below(folders):
            if len(folders) == 1 and len(inner := _subfolders(folder)) > 1:
                return InvalidConfig(
                    f"{self._root} has one folder, and {folder} holds {_names(each.name for each in inner)}.",
                    hint=f"If those are the classes, give --data.root {folder} --data.val_fraction 0.2.",
                )
        names = sorted(entry.name for entry in os.scandir(self._root) if not is_ignored(entry.name))
        for ending, kind in _OTHER_DATA:
            if files := [name for name in names if name.lower().endswith(ending)]:
                root = self._root if kind in ("ParquetData", "WebDatasetData") else self._root / files[0]
                return InvalidConfig(
                    f"{self._root} has no folder train; it holds {files[0]}.",
                    hint=f"Give --data {kind} --data.root {root}.",
                )
        if archive := next((name for name in names if name.lower().endswith(_ARCHIVE_ENDINGS)), None):
            return InvalidConfig(
                f"{self._root} has no folder train; it holds {readable_name(archive)}.", hint="Unpack it first."
            )
        with_images = [folder.name for folder in folders if next(walk_files(folder), None) is not None]
        if len(with_images) > 1 and not any(_split_in(name) for name in with_images):
            return InvalidConfig(
                f"{self._root} has no folder train; it has the folders {_names(with_images)}.",
                hint="If those are the classes, give --data.val_fraction 0.2 to hold out a fifth of each.",
            )
        return InvalidConfig(
            f"{self._root} has no folder train; it needs train/CLASS/*.jpg, and val or test beside train.",
            hint=f"It holds: {readable_name(', '.join(names[:5])) or 'nothing'}.",
        )


@dataclass
class _Scan:
    """What lies below a folder."""

    paths: list[Path] = field(default_factory=list)
    """Images, in the order of their names."""
    unsupported: Counter[str] = field(default_factory=Counter)
    """Endings of the files that are neither images that can be decoded nor known sidecar files."""


class _ClassFolders:
    """The class folders of a split, by label; names that differ only in their Unicode form are one class."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: dict[str, _Scan] = {}
        self.parent_links: list[str] = []
        """Names of links to a folder that the split is in."""
        targets: dict[Path, str] = {}
        for each in _subfolders(folder):
            target, label = each.resolve(), label_name(each.name)
            if not label:
                raise InvalidConfig(
                    f"A class folder in {readable_name(str(folder))} is named {each.name!r}.",
                    hint="Give it a name that can be seen.",
                )
            if folder.resolve().is_relative_to(target):
                self.parent_links.append(label)
                continue
            if (other := targets.setdefault(target, label)) != label:
                raise InvalidConfig(
                    f"{readable_name(str(folder))}: {other} and {label} are the same folder, by a link.",
                    hint="Remove the link; an image has one class.",
                )
            scan = self.classes.setdefault(label, _Scan())
            for path in walk_files(each):
                kind = kind_of(path)
                if kind == "image":
                    scan.paths.append(path)
                elif kind == "unsupported":
                    scan.unsupported[path.suffix.lower() or "no ending"] += 1
        self.loose = sorted(
            folder / entry.name
            for entry in os.scandir(folder)
            if not entry.is_dir() and not is_ignored(entry.name) and kind_of(folder / entry.name) == "image"
        )


class ImageFolderSource:
    """The images below the class folders of one split, in the order of their names.

    Args:
        folders: The class folders.
        labels: Class names in the order of their indices.
    """

    def __init__(self, folders: _ClassFolders, labels: list[str]) -> None:
        files = [
            (path, target)
            for target, label in enumerate(labels)
            for path in (folders.classes[label].paths if label in folders.classes else [])
        ]
        self._set(folders.folder, [path for path, _ in files], [target for _, target in files])

    @classmethod
    def of_unlabeled(cls, folders: _ClassFolders) -> "ImageFolderSource":
        """Return the images that lie in no class folder."""
        source = cls.__new__(cls)
        source._set(folders.folder, folders.loose, [UNLABELED] * len(folders.loose))
        return source

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return read_file(self._folder / self._names[index])

    def name(self, index: int) -> str:
        """Return its path."""
        return readable_name(str(self._folder / self._names[index]))

    def fingerprint(self) -> str:
        """Hash names and sizes: reading a million files would take longer than an epoch."""
        return fingerprint_of(f"{name} {_size(self._folder / name)}" for name in self._names)

    def find_copy(self, other: "ImageFolderSource") -> str | None:
        """Return the path of an image that another split has in the same place, if its content is the same."""
        other_names = set(other._names)
        for name in [name for name in self._names if name in other_names][:_NUM_COMPARED]:
            if _is_equal(self._folder / name, other._folder / name):
                return self.name(self._names.index(name))
        return None

    def _set(self, folder: Path, paths: Iterable[Path], targets: list[int]) -> None:
        self._folder = folder
        self._names = [os.path.relpath(path, folder) for path in paths]
        self.targets = np.array(targets, dtype=np.int64)


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder.

    Raises:
        InvalidConfig: it cannot be read, or a link in it that may be a folder leads nowhere.
    """
    try:
        entries = sorted(
            (entry for entry in os.scandir(folder) if not is_ignored(entry.name)), key=lambda each: each.path
        )
    except OSError as error:
        raise InvalidConfig(
            f"The folder {readable_name(str(folder))} cannot be read: {error.strerror or error}.",
            hint="Grant yourself read access to it.",
        ) from None
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink() and not path.exists() and not path.suffix:
            raise InvalidConfig(
                f"{readable_name(str(path))} is a link to {readable_name(str(path.readlink()))}, which does not exist.",
                hint="Fetch or mount what it points to, or remove the link.",
            )
    return [Path(entry.path) for entry in entries if entry.is_dir()]


def _is_split(folder: Path, split: Split) -> bool:
    names = "|".join(_SPLIT_NAMES[split])
    return re.fullmatch(rf"({names}){_SPLIT_ENDING}", folder.name, re.IGNORECASE) is not None


def _split_in(name: str) -> Split | None:
    """Return the split that a name has as one of its words, as seg_train has; None if there is none."""
    words = set(re.split(r"[\W_\d]+", name.casefold()))
    return next((split for split, names in _SPLIT_NAMES.items() if words & set(names)), None)


def _folders_below(folders: list[Path]) -> list[Path]:
    """Return some folders and those below, level by level, a few levels down: data sets come in folders of folders."""
    all_folders, level = list(folders), folders
    for _ in range(_SEARCHED_LEVELS):
        level = [inner for folder in level[:_SEARCHED_FOLDERS] for inner in _subfolders(folder)[:_SEARCHED_FOLDERS]]
        all_folders += level
    return all_folders


def _has_train(folder: Path) -> bool:
    return any(_is_split(inner, "train") for inner in _subfolders(folder))


def _no_folder(root: str) -> InvalidConfig:
    if expand_home(root).is_file():
        return InvalidConfig(f"{root} is a file.", hint="Give --data.root a folder; unpack an archive first.")
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", root) is not None
    hint = f"If it is a data set of the Hub: --data ParquetData --data.root {root}" if is_id else "Give --data.root."
    return InvalidConfig(f"There is no folder {root}.", hint=hint)


def _size(path: Path) -> int:
    """Return the size of a file, 0 for a link to nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_equal(one: Path, other: Path) -> bool:
    """Whether two files have the same content; one that cannot be read has none."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _listing(endings: Counter[str]) -> str:
    return _names(f"{number} x {ending}" for ending, number in endings.most_common())


def _names(names: Iterable[str]) -> str:
    """Return the first five names, and how many more there are."""
    shown = [readable_name(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
