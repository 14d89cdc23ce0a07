"""The files of a package: `config.json`, `model.safetensors` and `README.md`. Imports no torch.

Writing produces all three; reading needs the first two, as folders that timm writes have no README.md. The content of
config.json is untrusted: every value is checked before it is used.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

from eca_hub.atomic import TEMPORARY_SUFFIX, atomic_folder
from eca_hub.errors import InvalidConfig, InvalidPackage, UnknownName
from eca_hub.hub.detector_format import DETECTION_TASK, detector_from_dict
from eca_hub.hub.hashes import read_and_hash
from eca_hub.hub.timm_format import (
    ECA_HUB_KEY,
    LabelNaming,
    config_from_timm_dict,
    index_labels,
    is_timm_document,
    problem_type_in,
)
from eca_hub.models.config import (
    MAX_CLASSES,
    CropMode,
    ImageConfig,
    Interpolation,
    ModelConfig,
    Stem,
    current_stem,
    float_tuple,
)
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.paths import expand_home
from eca_hub.releases import release_folder

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
"""What every package is written, pushed and pulled as."""

PLOTS = ("curves.png", "confusion.png", "precision_recall.png")
"""Plots of a run that its card may show; those that it shows are pushed and pulled with it, nothing else of a folder
is."""

FORMAT = 1
"""Version of config.json that this code writes. Older ones keep loading."""

LIBRARY_NAME = "eca-hub"

_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_DEPTH = 32
_MAX_LABEL_CHARS = 1000
_MAX_REASON_CHARS = 1000
_LFS_POINTER = b"version https://git-lfs"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".tar")
"""Of checkpoints that may contain code."""
_CHECKPOINT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")


@dataclass(frozen=True)
class Package:
    """The checked bytes of a package, and where they came from."""

    model_id: str
    """Hub `owner/name`, or the path of the folder."""
    revision: str
    """40 hexadecimal digits: the commit, or for a folder the hash of its files."""
    config_bytes: bytes
    weights_bytes: bytes | memoryview


def plots_in(card: bytes) -> list[str]:
    """Return the plots that a card shows."""
    return [name for name in PLOTS if f"]({name})".encode() in card]


def folder_named(name: str | Path) -> Path:
    """Return the folder of a name, with `~` expanded and the prefix `file://` or `local-dir:` removed.

    Raises:
        InvalidPackage: it is empty, or neither a string nor a path.
    """
    if isinstance(name, Path):
        return name
    if not isinstance(name, str):
        raise InvalidPackage(f"The name of the model is {name!r}.", hint="Give OWNER/NAME or a folder.")
    if not name.strip():
        raise InvalidPackage("The name of the model is empty.", hint="Give OWNER/NAME or a folder.")
    for prefix in ("file://", "local-dir:"):
        if name.startswith(prefix):
            path = name.removeprefix(prefix)
            return Path(unquote(path) if prefix == "file://" else path)
    return expand_home(name)


def path_named(folder: str | Path) -> Path:
    """Return the path of a folder to write, with `~` expanded in a string, as `folder_named` does for reading."""
    return folder if isinstance(folder, Path) else expand_home(folder)


def find_package(folder: str | Path) -> Path:
    """Return the package folder: the one given, `model/` inside a run folder, or that of a release.

    Raises:
        InvalidPackage: config.json or the weights are missing in both; names what is missing.
    """
    path = folder_named(folder)
    if not is_folder(path):
        if (release := release_folder(str(folder))) is not None:
            return release
        raise InvalidPackage(
            f"{path} is not a folder.", hint="Give a run folder, a package folder, or OWNER/NAME of a hub model."
        )
    try:
        return _find_in(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def is_folder(path: Path) -> bool:
    """Return whether this is a folder; a name that no folder can have is none.

    Raises:
        InvalidPackage: a folder above it may not be searched.
    """
    return _is(Path.is_dir, path)


def is_file(path: Path) -> bool:
    """Return whether this is a file; a name that no file can have is none.

    Raises:
        InvalidPackage: a folder above it may not be searched.
    """
    return _is(Path.is_file, path)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except (OSError, ValueError):
        # The name is too long, for example.
        return False


def read_file(path: Path) -> bytes:
    """Return the content of a file of a package.

    Raises:
        InvalidPackage: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InvalidPackage:
    return InvalidPackage(f"{path} cannot be read: {error.strerror or error}.")


def _replaced(path: Path) -> InvalidPackage:
    return InvalidPackage(f"{path} was replaced while it was read.", hint="Load it again.")


def _find_in(given: Path) -> Path:
    candidates = (given, given / "model")
    for candidate in candidates:
        if (candidate / CONFIG_FILE).is_file():
            if not (candidate / WEIGHTS_FILE).is_file():
                raise _no_weights(candidate)
            _check_readable(candidate)
            return candidate
    hint = "Did the training run finish?"
    if any(path for folder in candidates for path in folder.glob(f".{CONFIG_FILE}.*{TEMPORARY_SUFFIX}")):
        hint = "A package is being saved there, or a save was interrupted: load it again, or save it again."
    elif weights := next((path for path in sorted(given.iterdir()) if path.suffix in _CHECKPOINT_SUFFIXES), None):
        hint = f"If it holds weights alone: eca-hub convert {weights} --to NEW_FOLDER"
    raise InvalidPackage(f"{given} has no {CONFIG_FILE}, nor has {given / 'model'}.", hint=hint)


def _check_readable(folder: Path) -> None:
    """Refuse files that cannot be opened, and what git leaves in place of weights where git-lfs is not installed."""
    for path in (folder / name for name in (*FILES, *PLOTS) if (folder / name).is_file()):
        try:
            with path.open("rb") as file:
                start = file.read(len(_LFS_POINTER))
        except FileNotFoundError:
            raise _replaced(folder) from None
        except OSError as error:
            raise _unreadable(path, error) from None
        if start == _LFS_POINTER:
            raise InvalidPackage(
                f"{path} is a Git LFS pointer, not the file itself.",
                hint=f"Fetch it: git -C {folder} lfs pull, or download the model again with eca-hub pull.",
            )


def _no_weights(folder: Path) -> InvalidPackage:
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS_FILE in names:
        path = folder / WEIGHTS_FILE
        kind = f"a link to {path.readlink()}, which does not exist" if path.is_symlink() else "not a file"
        return InvalidPackage(f"{path} is {kind}.", hint="Put the weights there.")
    if others:
        hint = f"mv {folder / others[0]} {folder / WEIGHTS_FILE}" if len(others) == 1 else "Save it as one file."
        if re.search(r"-of-\d+\.safetensors$", others[0]):
            hint = "It is cut into several files; save it as one."
        elif others[0].startswith("adapter"):
            hint = "An adapter holds a part of the weights; merge it into its network and save that."
        return InvalidPackage(f"{folder} has no {WEIGHTS_FILE}, but {', '.join(others[:3])}.", hint=hint)
    if not pickles:
        return InvalidPackage(f"{folder} has no {WEIGHTS_FILE}; a package needs {CONFIG_FILE} and {WEIGHTS_FILE}.")
    return InvalidPackage(
        f"{folder} has no {WEIGHTS_FILE}, only {pickles[0]}, which is not read: a pickle can run code.",
        hint=f"Convert it: eca-hub convert {folder / pickles[0]} --to NEW_FOLDER",
    )


def read_folder(folder: str | Path) -> Package:
    """Read the package in a folder, or a release by its name; its revision is a hash of its files.

    Raises:
        InvalidPackage: there is none, or another one was saved there meanwhile.
    """
    path = find_package(folder)
    digests = [hashlib.sha256() for _ in FILES]
    try:
        contents = [
            read_and_hash(path / name, digest) if (path / name).is_file() else memoryview(b"")
            for name, digest in zip(FILES, digests, strict=True)
        ]
        # A save replaces config.json last, and removes the old one before it replaces the weights.
        is_same = (path / CONFIG_FILE).read_bytes() == contents[0]
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise _replaced(path)
    revision = hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()[:40]
    return Package(str(folder), revision, bytes(contents[0]), contents[1])


def check_new_folder(folder: str | Path) -> Path:
    """Check that a folder is absent or empty, before any work is done for it.

    Raises:
        InvalidConfig: it is a file, not empty, or the current folder.
    """
    path = path_named(folder)
    try:
        is_new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        is_current = is_new and path.exists() and path.samefile(Path.cwd())
    except OSError as error:
        raise _not_writable(path, error) from None
    if not is_new:
        raise InvalidConfig(f"{path} exists and is not empty.", hint="Give a new folder.")
    if is_current:
        # The complete folder replaces an empty one, and a shell would stay in the folder that was replaced.
        raise InvalidConfig(f"{path} is the current folder, which cannot be replaced.", hint="Give a new folder.")
    return path


def make_package_folder(folder: str | Path) -> Path:
    """Make a folder if it is absent.

    Raises:
        InvalidConfig: it, or a folder above it, is a file.
    """
    path = path_named(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _not_writable(path, error) from None
    return path


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` when the block ends without an error.

    Raises:
        InvalidConfig: the folder is not empty or cannot be written.
    """
    path = check_new_folder(folder)
    try:
        with atomic_folder(path) as draft:
            yield draft
    except OSError as error:
        raise _not_writable(path, error) from None


def _not_writable(path: Path, error: OSError) -> InvalidConfig:
    return InvalidConfig(f"{path} cannot be written: {error.strerror or error}.", hint="Give another folder.")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a network that only eca-hub can build."""
    fields = dataclasses.asdict(config)
    labels = fields.pop("labels")
    del fields["timm_args"]
    if not config.is_multi_label:
        del fields["problem_type"]
    return {
        "format": FORMAT,
        "library_name": LIBRARY_NAME,
        **fields,
        "num_classes": len(labels),
        "label_names": labels,
    }


def to_json_text(document: Mapping[str, Any]) -> str:
    """Format a JSON document so that people can read it too."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def config_from_json(text: bytes, *, origin: str, default_labels_for: LabelNaming = index_labels) -> ModelConfig:
    """Parse and check a config.json of ours or of timm's.

    Args:
        text: The bytes of the file.
        origin: Name of the package in messages.
        default_labels_for: Names the classes of a timm network without label names.

    Raises:
        InvalidPackage: not JSON, neither ours nor timm's, of a later format, or with a value that cannot be used.
    """
    document = _parse_document(text, origin)
    if document.get("task") == DETECTION_TASK:
        raise InvalidPackage(
            f"{origin} is a detector, not a classifier.", hint="Load it with eca_hub.Detector, or eca-hub detect."
        )
    try:
        if document.get("library_name") == LIBRARY_NAME:
            config = _config_from_dict(document)
        else:
            config = config_from_timm_dict(document, default_labels_for)
        check_label_text(config.labels)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, InvalidConfig) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidPackage(f"{CONFIG_FILE} of {origin} cannot be used: {what[:_MAX_REASON_CHARS]}") from None
    return config


def detector_config_from_json(text: bytes, *, origin: str) -> DetectorConfig:
    """Parse and check the config.json of a detector.

    Args:
        text: The bytes of the file.
        origin: Name of the package in messages.

    Raises:
        InvalidPackage: not JSON, of a later format, a classifier, or with a value that cannot be used.
    """
    document = _parse_document(text, origin)
    if document.get("task") != DETECTION_TASK:
        raise InvalidPackage(
            f"{origin} is a classifier, not a detector.", hint="Load it with eca_hub.Classifier, or eca-hub classify."
        )
    try:
        config = detector_from_dict(document)
        check_label_text(config.labels)
    except (KeyError, TypeError, ValueError, OverflowError, InvalidConfig, UnknownName) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidPackage(f"{CONFIG_FILE} of {origin} cannot be used: {what[:_MAX_REASON_CHARS]}") from None
    return config


def is_detector(text: bytes) -> bool:
    """Return whether a config.json says that the package is a detector."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
        return isinstance(document, dict) and document.get("task") == DETECTION_TASK
    return False


def is_package_config(text: bytes) -> bool:
    """Return whether a config.json is eca-hub's or timm's, not that of another program."""
    with contextlib.suppress(ValueError, RecursionError):
        return _is_ours_or_timms(json.loads(text))
    return False


def is_own_config(text: bytes) -> bool:
    """Return whether a config.json was written by eca-hub, in its own format or in timm's."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
        return isinstance(document, dict) and (document.get("library_name") == LIBRARY_NAME or ECA_HUB_KEY in document)
    return False


def _is_ours_or_timms(document: object) -> bool:
    return isinstance(document, dict) and (document.get("library_name") == LIBRARY_NAME or is_timm_document(document))


def foreign_config(origin: str) -> InvalidPackage:
    """Return the error for a config.json of another program."""
    return InvalidPackage(
        f"{CONFIG_FILE} of {origin} is neither eca-hub's, which says library_name {LIBRARY_NAME!r}, nor timm's, "
        "which has a pretrained_cfg."
    )


def command_for(config_bytes: bytes) -> str:
    """Return the command that runs a package: `detect` for a detector, else `classify`."""
    return "detect" if is_detector(config_bytes) else "classify"


def is_timm_compatible(text: bytes) -> bool:
    """Return whether a config.json that `config_from_json` has read was written by eca-hub for stock timm as well."""
    return ECA_HUB_KEY in json.loads(text)


def _parse_document(text: bytes, origin: str) -> dict[str, Any]:
    if len(text) > _MAX_CONFIG_BYTES:
        raise InvalidPackage(f"{CONFIG_FILE} of {origin} has {len(text)} bytes; the limit is {_MAX_CONFIG_BYTES}.")
    try:
        document = json.loads(text, object_pairs_hook=_reject_duplicate_keys)
    except _DuplicateKey as error:
        raise InvalidPackage(f"{CONFIG_FILE} of {origin} has the key {ascii(str(error))[:60]} twice.") from None
    except (ValueError, RecursionError):
        raise InvalidPackage(f"{CONFIG_FILE} of {origin} is not JSON.") from None
    if not _is_shallow(document):
        raise InvalidPackage(f"{CONFIG_FILE} of {origin} is nested more than {_MAX_DEPTH} deep.")
    if not _is_ours_or_timms(document):
        raise foreign_config(origin)
    assert isinstance(document, dict)
    if document.get("library_name") == LIBRARY_NAME and document.get("format") != FORMAT:
        raise InvalidPackage(
            f"{CONFIG_FILE} of {origin} has format {document.get('format')!r}; this eca-hub reads {FORMAT}.",
            hint="Update eca-hub.",
        )
    return document


def _is_shallow(document: Any) -> bool:
    """Return whether values are nested at most `_MAX_DEPTH` deep, so that functions may recurse over them."""
    level = [document]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    return not any(isinstance(value, dict | list) for value in level)


class _DuplicateKey(Exception):
    """A key occurs twice in a JSON object: readers differ in which of the values they take."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise _DuplicateKey(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return document


def _config_from_dict(document: Mapping[str, Any]) -> ModelConfig:
    labels = document["label_names"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("label_names is not a list of strings.")
    if not 1 <= len(labels) <= MAX_CLASSES or document["num_classes"] != len(labels):
        raise ValueError(f"num_classes is {document['num_classes']!r} and there are {len(labels)} label_names.")
    stem = current_stem(document["stem"])
    _expect_one_of("stem", stem, get_args(Stem))
    for name in ("architecture", "attention"):
        if not isinstance(document[name], str):
            raise TypeError(f"{name} is not a string.")
    if not isinstance(document["attention_args"], dict):
        raise TypeError("attention_args is not an object.")
    return ModelConfig(
        architecture=document["architecture"],
        attention=document["attention"],
        attention_args=document["attention_args"],
        labels=tuple(labels),
        image=_image_from_dict(document["image"]),
        stem=stem,
        problem_type=problem_type_in(document),
    )


def _image_from_dict(value: Any) -> ImageConfig:
    if not isinstance(value, dict):
        raise TypeError("image is not an object.")
    known = [field.name for field in dataclasses.fields(ImageConfig)]
    unknown = sorted(value.keys() - set(known))
    if unknown:
        raise ValueError(f"image has the key {unknown[0][:60]!r}; its keys are {', '.join(known)}.")
    _expect_one_of("interpolation", value["interpolation"], get_args(Interpolation))
    _expect_one_of("crop_mode", value["crop_mode"], get_args(CropMode))
    return ImageConfig(**{**value, **{name: float_tuple(name, value[name]) for name in ("mean", "std")}})


def _expect_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


def check_label_text(labels: Sequence[str]) -> None:
    """Check that class names can be shown on a terminal and a page: no control characters, and a limited length.

    Raises:
        InvalidConfig: a name cannot; says which and why.
    """
    for index, label in enumerate(labels):
        if any(unicodedata.category(char) in ("Cc", "Cs") or char in _DIRECTION_CHARS for char in label):
            raise InvalidConfig(f"Label {index} is {ascii(label)[:60]}; control characters are not allowed.")
        if len(label) > _MAX_LABEL_CHARS:
            raise InvalidConfig(f"Label {index} has {len(label)} characters; at most {_MAX_LABEL_CHARS} are allowed.")


_DIRECTION_CHARS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They change the order in which the text around them is shown."""
