"""What a package is: `config.json`, `model.safetensors` and `README.md`, and nothing else.

Reads and writes the words of a package, not its weights, so that publishing needs no torch. Knows nothing of networks
or of the hub's protocol.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from eca_hub.atomic import atomic_folder
from eca_hub.errors import InvalidConfig, NotAnEcaModel
from eca_hub.hub.hashes import read_hashed
from eca_hub.hub.timm_config import OURS, NumberedLabels, from_timm, numbers
from eca_hub.models.config import CropMode, ImageConfig, Interpolation, ModelConfig, Stem, current_stem

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)

FORMAT = 1
"""Version of config.json that this code writes. Older ones keep loading."""

LIBRARY_NAME = "eca-hub"

_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_LABELS = 100_000


@dataclass(frozen=True)
class Package:
    """The checked bytes of a package, and where they came from."""

    model_id: str
    """Hub `owner/name`, or the path of the folder."""
    revision: str
    """40 hexadecimal digits: the commit, or for a folder the hash of its files."""
    config_bytes: bytes
    weights_bytes: bytes | memoryview


def find_package(folder: str | Path) -> Path:
    """Return the package folder: the one given, or `model/` inside a run folder.

    Raises:
        NotAnEcaModel: a file of the three is missing in both; names it.
    """
    given = Path(folder)
    if not given.is_dir():
        raise NotAnEcaModel(
            f"{given} is no folder.", hint="Give a run folder, a package folder, or OWNER/NAME of a hub model."
        )
    for candidate in (given, given / "model"):
        if (candidate / CONFIG_FILE).is_file():
            missing = [name for name in FILES if not (candidate / name).is_file()]
            if missing:
                raise NotAnEcaModel(f"{candidate} lacks {' and '.join(missing)}; a package is {', '.join(FILES)}.")
            return candidate
    raise NotAnEcaModel(
        f"{given} holds no {CONFIG_FILE}, neither does {given / 'model'}.", hint="Did the training run end?"
    )


def read_folder(folder: str | Path) -> Package:
    """Read the package in a folder; its revision is a hash of the three files."""
    path = find_package(folder)
    digests = [hashlib.sha256() for _ in FILES]
    config_bytes, weights_bytes, _ = [
        read_hashed(path / name, digest) for name, digest in zip(FILES, digests, strict=True)
    ]
    revision = hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()[:40]
    return Package(str(folder), revision, bytes(config_bytes), weights_bytes)


def check_new_folder(folder: str | Path) -> Path:
    """Check that a folder is absent or empty, before any work is done for it.

    Raises:
        InvalidConfig: it is a file or not empty.
    """
    path = Path(folder)
    try:
        is_new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise _not_writable(path, error) from None
    if not is_new:
        raise InvalidConfig(f"{path} exists and is not empty.", hint="Give a new folder.")
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


def config_to_words(config: ModelConfig) -> dict[str, Any]:
    """Write what config.json says of a network that only eca-hub can make."""
    words = dataclasses.asdict(config)
    labels = words.pop("labels")
    del words["timm_args"]
    return {
        "format": FORMAT,
        "library_name": LIBRARY_NAME,
        **words,
        "num_classes": len(labels),
        "label_names": labels,
    }


def to_text(document: Mapping[str, Any]) -> str:
    """Write a JSON document for people to read as well."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def config_from_json(text: bytes, *, origin: str, labels_for: NumberedLabels = numbers) -> ModelConfig:
    """Read config.json, of ours or of timm's shape, trusting nothing in it.

    Args:
        text: The bytes of the file.
        origin: What to call the package in a message.
        labels_for: Names the classes of a network of timm's that brings no names.

    Raises:
        NotAnEcaModel: not JSON, neither ours nor timm's, of a later format, or with a value of the wrong kind.
    """
    document = _document(text, origin)
    try:
        if document.get("library_name") == LIBRARY_NAME:
            return _config_from_words(document)
        return from_timm(document, labels_for)
    except (KeyError, TypeError, ValueError, OverflowError, InvalidConfig) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise NotAnEcaModel(f"{CONFIG_FILE} of {origin} cannot be used: {what}") from None


def is_written_for_timm(text: bytes) -> bool:
    """Whether a config.json that `config_from_json` has read says that eca-hub wrote the package for stock timm too."""
    return OURS in json.loads(text)


def _document(text: bytes, origin: str) -> dict[str, Any]:
    if len(text) > _MAX_CONFIG_BYTES:
        raise NotAnEcaModel(f"{CONFIG_FILE} of {origin} has {len(text)} bytes; the limit is {_MAX_CONFIG_BYTES}.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise NotAnEcaModel(f"{CONFIG_FILE} of {origin} is not JSON.") from None
    if not isinstance(document, dict) or (
        document.get("library_name") != LIBRARY_NAME and "pretrained_cfg" not in document
    ):
        raise NotAnEcaModel(
            f"{CONFIG_FILE} of {origin} is neither eca-hub's, which says library_name {LIBRARY_NAME!r}, nor timm's, "
            "which has a pretrained_cfg."
        )
    if document.get("library_name") == LIBRARY_NAME and document.get("format") != FORMAT:
        raise NotAnEcaModel(
            f"{CONFIG_FILE} of {origin} has format {document.get('format')!r}; this eca-hub reads {FORMAT}.",
            hint="A later one: pip install -U eca-hub",
        )
    return document


def _config_from_words(document: Mapping[str, Any]) -> ModelConfig:
    labels = document["label_names"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("label_names is not a list of strings.")
    if not 1 <= len(labels) <= _MAX_LABELS or document["num_classes"] != len(labels):
        raise ValueError(f"num_classes is {document['num_classes']!r} and there are {len(labels)} label_names.")
    image = dict(document["image"])
    _expect_one_of("interpolation", image["interpolation"], get_args(Interpolation))
    _expect_one_of("crop_mode", image["crop_mode"], get_args(CropMode))
    stem = current_stem(document["stem"])
    _expect_one_of("stem", stem, get_args(Stem))
    for name in ("mean", "std"):
        image[name] = tuple(float(number) for number in image[name])
    for name in ("architecture", "attention"):
        if not isinstance(document[name], str):
            raise TypeError(f"{name} is not a string.")
    return ModelConfig(
        architecture=document["architecture"],
        attention=document["attention"],
        attention_args=dict(document["attention_args"]),
        labels=tuple(labels),
        image=ImageConfig(**image),
        stem=stem,
    )


def _expect_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
