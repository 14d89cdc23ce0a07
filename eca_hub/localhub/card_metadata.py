"""Metadata of a model card as JSON values, and the tags that they give."""

import math
import re
from typing import Any

from eca_hub.card_yaml import InvalidCard, parse_card_yaml

MAX_TAGS = 500

_METADATA = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LISTS = ("tags", "datasets", "metrics", "language", "library_name", "license", "base_model", "pipeline_tag")


def read_metadata(card: str) -> dict[str, Any]:
    """Return the metadata of a card as JSON values; empty if there are none.

    Raises:
        InvalidCard: the metadata cannot be read.
    """
    match = _METADATA.match(card)
    if not match:
        return {}
    try:
        metadata: dict[str, Any] = _plain(parse_card_yaml(match[1]))
    except ValueError:
        # A key that is a number of thousands of digits.
        raise InvalidCard("the YAML between the --- lines is broken: a key in it cannot be read") from None
    return metadata


def body_of(card: str) -> str:
    """Return a card without its metadata."""
    return _METADATA.sub("", card, count=1)


def validate_card(card: str) -> tuple[list[str], list[str]]:
    """Return errors and warnings: whether there are metadata, and whether they are valid YAML."""
    try:
        metadata = read_metadata(card)
    except InvalidCard as error:
        return [str(error)], []
    return [], [] if metadata else ["empty or missing yaml metadata in repo card"]


def tags_of(metadata: dict[str, Any]) -> list[str]:
    """Return the tags by which a repository can be found."""
    values = {name: _texts(metadata.get(name)) for name in _LISTS}
    tags = values["tags"] + values["library_name"] + values["pipeline_tag"] + values["language"]
    tags += [f"license:{name}" for name in values["license"]]
    tags += [f"dataset:{name}" for name in values["datasets"]]
    tags += [f"base_model:{name}" for name in values["base_model"]]
    if relation := text_of(metadata, "base_model_relation"):
        tags += [f"base_model:{relation}:{name}" for name in values["base_model"]]
    return list(dict.fromkeys(tags))[:MAX_TAGS]


def text_of(metadata: dict[str, Any], name: str) -> str | None:
    """Return an entry if it is a string."""
    value = metadata.get(name)
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    # Values that JSON cannot express: 1e400, or a hexadecimal number of a million digits.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond 64 bits"
    return value if isinstance(value, str | int | float | bool | None) else str(value)
