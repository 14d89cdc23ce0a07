"""From a sweep file to the list of its runs.

    configs: [experiments/configs/digits/eca.yaml]     # of every run, as `eca-hub fit --config`; later ones win
    options: {trainer.max_epochs: 5}                   # of every run
    grid:                                              # every combination is a run
      model.attention: [none, se, eca]
      seed_everything: [0, 1, 2]
    exclude:                                           # combinations to leave out
      - {model.attention: se, seed_everything: 2}

A run is identified by the SHA-256 of its options and of the bytes of its configuration files, so a changed recipe is
another run and a finished run is never repeated.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.train.checkpoint.fingerprint import options_of_training

SEEDS = ("seed_everything", "seed")
"""Columns that hold the seed of a run."""

_KEYS = ("configs", "options", "grid", "exclude")
_MAX_NAME_CHARS = 80
_MAX_RUNS = 100_000


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Its folder: the values of the grid, and the start of its hash."""
    config_hash: str
    """SHA-256 over its options and configuration files, in hexadecimal digits."""
    training_hash: str
    """`options:` and the SHA-256 over the options that change its weights, of its files and of the sweep, but not of
    the grid: equal for all runs of the sweep, and of others that train alike. That of older versions has no `options:`,
    and is over the content of the files."""
    point: Mapping[str, Any]
    """Its values of the grid, by option."""
    arguments: tuple[str, ...]
    """What follows `eca-hub fit`, without the run folder."""


def read_sweep(path: Path) -> list[SweepRun]:
    """Read a sweep file and list its runs, in the order of the grid.

    Args:
        path: The YAML file. Paths of `configs` are relative to the working directory, as they are for `eca-hub fit`.

    Raises:
        InvalidConfig: the file or a configuration cannot be read, or the grid has no runs.
        UnknownName: a key that a sweep file does not have.
    """
    document = _load(path)
    for key in document:
        if key not in _KEYS:
            raise UnknownName.among("key of a sweep file", str(key), _KEYS, listing=", ".join(_KEYS))
        _check_json(document[key], f"{path}: {key}")
    configs = [Path(str(each)) for each in _list(document, "configs", path)]
    options = _mapping(document, "options", path)
    grid = {key: _values(key, values, path) for key, values in _mapping(document, "grid", path).items()}
    excluded = [_exclusion(each, grid, path) for each in _list(document, "exclude", path)]
    if twice := sorted(options.keys() & grid.keys()):
        raise InvalidConfig(f"{path}: {twice[0]} is under options and under grid.", hint="Keep one of both.")
    contents = [_read_config(config) for config in configs]
    size = 1
    for values in grid.values():
        size *= len(values)
    if size > _MAX_RUNS:
        raise InvalidConfig(f"{path} describes {size:,} runs; at most {_MAX_RUNS:,} are allowed.")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    kept = [point for point in points if not any(each.items() <= point.items() for each in excluded)]
    if not kept:
        raise InvalidConfig(f"{path} describes no runs: every combination is excluded.")
    documents = [_parse_config(config, content) for config, content in zip(configs, contents, strict=True)]
    training_hash = _training_hash([*documents, options], grid)
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    return [_run(point, configs, hashes, options, training_hash) for point in kept]


def column_names(keys: Sequence[str]) -> dict[str, str]:
    """Name the column of each option: its last word where that is unique, such as attention for model.attention."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def _run(
    point: Mapping[str, Any], configs: list[Path], hashes: list[str], options: Mapping[str, Any], training_hash: str
) -> SweepRun:
    merged = {**options, **point}
    config_hash = _hash_of_json({"configs": hashes, "options": merged})
    columns = column_names(list(point))
    words = "_".join(f"{columns[key]}={as_text(value)}" for key, value in point.items())
    name = re.sub(r"[^\w.=,+-]+", "-", words)[:_MAX_NAME_CHARS]
    arguments = [word for config in configs for word in ("--config", str(config))]
    for key, value in merged.items():
        arguments += [f"--{key}", as_text(value)]
    return SweepRun(f"{name}_{config_hash[:8]}".lstrip("_"), config_hash, training_hash, point, tuple(arguments))


def _training_hash(documents: Sequence[Mapping[str, Any]], grid: Collection[str]) -> str:
    """Hash the options of documents, of which later ones win, without those of the grid."""
    given: dict[str, Any] = {}
    for document in documents:
        given |= options_of_training(document)
    of_grid = [f"{name}." for name in options_of_training(dict.fromkeys(grid))]
    shared = {name: each for name, each in given.items() if not f"{name}.".startswith(tuple(of_grid))}
    return f"options:{_hash_of_json(shared)}"


def _hash_of_json(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def as_text(value: Any) -> str:
    """Write a value of an option as on the command line: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _load(path: Path) -> dict[Any, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"The sweep file {path} cannot be read: {error.strerror}.") from None
    return _as_mapping(_parse(path, content), path, hint=f"Its keys are {', '.join(_KEYS)}.")


def _parse_config(path: Path, content: bytes) -> dict[Any, Any]:
    document = _parse(path, content)
    return {} if document is None else _as_mapping(document, path)


def _as_mapping(document: Any, path: Path, *, hint: str = "") -> dict[Any, Any]:
    if not isinstance(document, dict):
        raise InvalidConfig(f"{path} must be a mapping.", hint=hint)
    return document


def _parse(path: Path, content: bytes) -> Any:
    """Read YAML, and reject what YAML reads and a hash cannot be made of, such as a value that contains itself."""
    try:
        document = yaml.safe_load(content.decode("utf-8-sig"))
    # YAML raises the last three for a tag that does not fit its value, such as !!bool abc.
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        raise InvalidConfig(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from None
    try:
        _hash_of_json({"document": document})
    except TypeError:
        raise InvalidConfig(f"{path} has a mapping whose keys are not all text.") from None
    except (RecursionError, ValueError) as error:
        raise InvalidConfig(f"{path} has a value that cannot be read: {error}.") from None
    return document


def _list(document: Mapping[Any, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise InvalidConfig(f"{path}: {key} must be a list, not {value!r}.")
    return value


def _mapping(document: Mapping[Any, Any], key: str, path: Path) -> dict[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidConfig(f"{path}: {key} must be a mapping from options to values, not {value!r}.")
    return {str(option).removeprefix("--"): each for option, each in value.items()}


def _values(key: str, values: Any, path: Path) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise InvalidConfig(
            f"{path}: grid.{key} must be a list of values, not {values!r}.", hint=f"Write {key}: [{values}]."
        )
    texts = [as_text(value) for value in values]
    for text in texts:
        if texts.count(text) > 1:
            raise InvalidConfig(f"{path}: grid.{key} has {text!r} more than once.")
    return values


def _check_json(value: Any, where: str) -> None:
    """Reject what YAML reads and a command line cannot express, such as dates."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise InvalidConfig(f"{where} has the key {key!r}; keys must be text.", hint=f"Write '{key}'.")
            _check_json(each, f"{where}.{key}")
    elif isinstance(value, list):
        for each in value:
            _check_json(each, where)
    elif value is not None and not isinstance(value, str | int | float):
        raise InvalidConfig(f"{where} has {value!r}, which is no text or number.", hint=f"Write '{value}' in quotes.")


def _exclusion(each: Any, grid: Mapping[str, list[Any]], path: Path) -> dict[str, Any]:
    if not isinstance(each, dict) or not each or not set(each) <= set(grid):
        raise InvalidConfig(
            f"{path}: exclude has {each!r}; each entry must name options of the grid: {', '.join(grid)}."
        )
    for key, value in each.items():
        if value not in grid[key]:
            raise InvalidConfig(f"{path}: exclude names {key}: {value!r}, which the grid does not have.")
    return each


def _read_config(config: Path) -> bytes:
    try:
        return config.read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"The configuration {config} cannot be read: {error.strerror}.",
            hint="Paths are relative to the folder where eca-hub is started.",
        ) from None
