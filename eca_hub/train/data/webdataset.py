"""Images in tar shards, as WebDataset has them: files with one key are one sample.

The shards are in a folder of this machine: their headers are read once, and images by their position in the file. So
the order of an epoch is a permutation of all images, and a run resumes at the very batch, as with every other kind of
data. Shards elsewhere, or too large for that, are streamed by `WebDatasetStreamData`.

Shapes: N images.
"""

import contextlib
import copy
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eca_hub.errors import InvalidConfig
from eca_hub.images.folders import walk_files
from eca_hub.images.limits import ImageLimits, check_num_bytes
from eca_hub.paths import expand_home
from eca_hub.train.data.datamodule import FileDataModule, check_labels
from eca_hub.train.data.labels import class_names, label_name, to_targets
from eca_hub.train.data.shards import IMAGE_ENDINGS, LABEL_ENDINGS, ending_among, label_endings, label_in
from eca_hub.train.data.source import Source, Split, fingerprint_of, pointer_in, readable_name, split_named_by

_SNIFFED_BYTES = 64
_MAX_LABEL_BYTES = 16 << 20
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
_HINT = "Name the files KEY.jpg and KEY.cls; a key has no dot."
_SPLIT_NAMES: dict[Split, str] = {"train": r"train", "val": r"(validation|valid|val|dev)", "test": r"test"}
_OF_FOLDER = {split: re.compile(pattern, re.IGNORECASE) for split, pattern in _SPLIT_NAMES.items()}
_IN_FILE = {
    split: re.compile(rf"(?<![a-z]){pattern}(?![a-z])", re.IGNORECASE) for split, pattern in _SPLIT_NAMES.items()
}


class WebDatasetData(FileDataModule):
    """Images in tar shards in a folder, such as train-0000.tar and val-0000.tar; WebDatasetStreamData streams them.

    A sample is an image (`KEY.jpg`, `.png`, ...) and its class, as a number or a word, in `KEY.cls` or under `label` in
    `KEY.json`; without them, the image's folder inside the shard is its class. A key ends at the first dot; further
    words before the ending, as in `KEY.left.jpg` or `KEY.target.cls`, are allowed where only one file has that ending.
    One of val and test may be missing, or both with val_fraction.

    Args:
        root: A folder of tar files whose names have their split as a word, or else that lie in a folder named as it.
        options: val_fraction, image, augment, batch_size, num_workers, cache_mib, max_bad_samples, balanced_sampling.

    Raises:
        InvalidConfig: a split is missing, or a shard cannot be read or has images without a class.
    """

    def __init__(self, root: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        folder = expand_home(root)
        if folder.is_file():
            raise InvalidConfig(f"{root} is a file.", hint=f"Give --data.root {folder.parent}, its folder.")
        if not folder.is_dir():
            raise InvalidConfig(
                f"There is no folder {root}.",
                hint="Give --data.root, a folder of tar files; WebDatasetStreamData takes patterns and addresses.",
            )
        self.title = readable_name(folder.resolve().name) or "images"
        shards = _find_shards(folder, has_val_fraction=bool(self.val_fraction))
        samples = {split: list(_samples(paths, self.remarks)) for split, paths in shards.items()}
        for split, split_samples in samples.items():
            if not split_samples:
                raise InvalidConfig(f"The {split} split of {self.title} has no images.")
        if all(sample.label is None for sample in samples["train"]):
            raise InvalidConfig(
                f"The train split of {self.title} has no labels.",
                hint="A class is in KEY.cls, or under label in KEY.json, or the folder of the images in the shard.",
            )
        self.labels = class_names(sample.label for sample in samples["train"])
        sources: dict[Split, Source] = {}
        for split, split_samples in samples.items():
            values = [sample.label for sample in split_samples]
            check_labels(self.labels, class_names(values), split, self.title)
            sources[split] = TarSource(split_samples, to_targets(values, self.labels))
        self.use_splits(sources, str(folder))


class Sample(NamedTuple):
    """An image inside a tar file."""

    shard: Path
    start: int
    """Position of its first byte in the shard."""
    size: int
    name: str
    label: str | None


class TarSource:
    """Images inside uncompressed tar files, read by their positions.

    Args:
        samples: The images.
        targets: Class index of each, (N,).
    """

    def __init__(self, samples: list[Sample], targets: np.ndarray) -> None:
        self._shards = list(dict.fromkeys(sample.shard for sample in samples))
        number_of = {shard: number for number, shard in enumerate(self._shards)}
        rows = [(number_of[sample.shard], sample.start, sample.size) for sample in samples]
        self._positions_N3 = np.array(rows, dtype=np.int64).reshape(-1, 3)
        self._names = [sample.name for sample in samples]
        self.targets = targets

    def read(self, index: int) -> bytes:
        """Return one encoded image.

        Raises:
            OSError: the shard cannot be read, or ends inside the image.
            TooLarge: the image has more bytes than are decoded.
        """
        number, start, size = self._positions_N3[index].tolist()
        check_num_bytes(size, ImageLimits())
        with self._shards[number].open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, start)
        if len(content) < size:
            raise OSError("the shard ends inside the image")
        return content

    def name(self, index: int) -> str:
        """Return shard and name."""
        return f"{readable_name(self._shards[self._positions_N3[index, 0]].name)}/{self._names[index]}"

    def fingerprint(self) -> str:
        """Hash names, positions and labels."""
        shards = [f"{shard.name} {shard.stat().st_size}" for shard in self._shards]
        return fingerprint_of([*shards, *self._names, self._positions_N3.tobytes().hex(), self.targets.tobytes().hex()])


def _find_shards(folder: Path, *, has_val_fraction: bool) -> dict[Split, list[Path]]:
    files = list(walk_files(folder))
    paths = sorted(path for path in files if path.suffix.lower() == ".tar")
    named = [(split_named_by(path, folder, _IN_FILE, _OF_FOLDER), path) for path in paths]
    shards = {
        split: of_split for split in _SPLIT_NAMES if (of_split := [path for each, path in named if each == split])
    }
    if not shards and paths and has_val_fraction:
        return {"train": paths}
    if "train" not in shards:
        names = ", ".join(path.name for path in sorted(files)[:5]) or "nothing"
        hint = "Name the shards train-0000.tar, or give --data.val_fraction 0.2." if paths and not shards else ""
        if any(path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")) for path in files):
            hint = "Compressed shards (.tar.gz) must be unpacked to .tar."
        raise InvalidConfig(f"{folder} has no train*.tar; it holds {names}.", hint=hint)
    return shards


def _samples(shards: list[Path], remarks: list[str]) -> Iterator[Sample]:
    """Yield the images of some shards with their labels, in order."""
    for shard in shards:
        images: dict[str, dict[str, tarfile.TarInfo]] = {}
        contents: dict[str, dict[str, bytes]] = {}
        files: dict[str, tarfile.TarInfo] = {}
        other_endings: dict[str, str] = {}
        num_repeated = num_links = 0
        try:
            with tarfile.open(shard, "r:") as tar:
                for each in tar:
                    member = each
                    # GNU tar writes the content of linked files once.
                    if each.islnk() and each.linkname in files:
                        member = copy.copy(files[each.linkname])
                        member.name = each.name
                    base = member.name.rsplit("/", 1)[-1]
                    num_links += member.issym() or member.islnk()
                    if not member.isfile() or base.startswith("."):
                        continue
                    files[member.name] = member
                    # A key ends at the first dot of the file's name, as in WebDataset.
                    stem, _, ending = base.partition(".")
                    key, ending = member.name[: len(member.name) - len(base)] + stem, ending.lower()
                    if ending.rsplit(".", 1)[-1] in IMAGE_ENDINGS:
                        num_repeated += images.setdefault(key, {}).setdefault(ending, member) is not member
                    elif ending in LABEL_ENDINGS or ending.endswith(f".{LABEL_ENDINGS[0]}"):
                        if member.size > _MAX_LABEL_BYTES:
                            raise InvalidConfig(
                                f"{readable_name(member.name)} of {shard} has {member.size} bytes; a file with a class "
                                f"has at most {_MAX_LABEL_BYTES}."
                            )
                        file = tar.extractfile(member)
                        assert file is not None
                        contents.setdefault(key, {}).setdefault(ending, file.read())
                    elif ending:
                        other_endings[key] = ending
                end = tar.offset
        except (tarfile.TarError, OSError) as error:
            raise _unreadable(shard, error) from None
        if num_repeated:
            remarks.append(f"{shard.name}: images with the name of an earlier one are left out: {num_repeated}.")
        if num_links:
            remarks.append(
                f"{shard.name}: symbolic links, and links to files that are not before them, are left out: {num_links}."
            )
        if missing := [key for key in {**contents, **other_endings} if key not in images]:
            endings = sorted({f".{other_endings[key]}" for key in missing if key in other_endings})
            remarks.append(
                f"{shard.name}: samples without an image that is decoded are left out: {len(missing)}"
                + (f" ({', '.join(endings[:5])})." if endings else ".")
            )
        _check_end(shard, end, remarks)
        labels = {key: _label_of(files, f"{key} of {shard}") for key, files in contents.items()}
        for key, members in images.items():
            in_folder = key.split("/")[-2] if key.count("/") and key.split("/")[-2] not in (".", "") else None
            label = label_name(in_folder) if in_folder and not any(labels.values()) else labels.get(key)
            member = _image_of(members, f"{key} of {shard}")
            yield Sample(shard, member.offset_data, member.size, readable_name(member.name), label)


def _unreadable(shard: Path, error: Exception) -> InvalidConfig:
    with contextlib.suppress(OSError), shard.open("rb") as file:
        start = file.read(_SNIFFED_BYTES)
        if pointer := pointer_in(start):
            return InvalidConfig(f"{shard} is a pointer of {pointer.tool}.", hint=f"`{pointer.command}` fetches it.")
        if start.startswith(_COMPRESSED):
            return InvalidConfig(f"{shard} is compressed.", hint="Compressed shards must be unpacked to .tar.")
    return InvalidConfig(f"{shard} cannot be read as a tar file: {error}.")


def _check_end(shard: Path, end: int, remarks: list[str]) -> None:
    """Check that a block of zeros follows the last file of a shard: tarfile stops at a damaged header without an error.

    Raises:
        InvalidConfig: something else follows.
    """
    with shard.open("rb") as file:
        file.seek(max(end - tarfile.BLOCKSIZE, 0))
        last, following = file.read(tarfile.BLOCKSIZE), file.read(tarfile.BLOCKSIZE)
    if any(following):
        raise InvalidConfig(f"{shard} is damaged or cut off: no valid tar header after {end} bytes.")
    if not following and any(last):
        remarks.append(f"{shard.name} has no end-of-archive marker; it may be cut off, with images missing.")


def _label_of(contents: Mapping[str, bytes], title: str) -> str | None:
    try:
        endings = label_endings(contents)
    except OSError as error:
        raise InvalidConfig(f"The class of the sample {title}: {error}.", hint=_HINT) from None
    return next((label for each in endings if (label := label_in(contents[each], each)) is not None), None)


def _image_of(members: Mapping[str, tarfile.TarInfo], title: str) -> tarfile.TarInfo:
    try:
        ending = ending_among(members, IMAGE_ENDINGS)
    except OSError as error:
        raise InvalidConfig(f"The image of the sample {title}: {error}.", hint=_HINT) from None
    assert ending is not None
    return members[ending]
