"""The YAML head of a model card: what the hub reads in it, and what is wrong with it.

Knows nothing about the store or HTTP. The text comes from strangers: anchors are refused, since they let a few lines
unfold into gigabytes, and so are long heads and Python objects.
"""

import math
import re
from typing import Any

import yaml

from eca_hub.localhub.licenses import LICENSES

MAX_HEAD_CHARS = 64_000
MAX_TAGS = 500
MAX_DEPTH = 30

_HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LISTS = ("tags", "datasets", "metrics", "language", "library_name", "license", "base_model", "pipeline_tag")


class BadCard(Exception):
    """The head of a card cannot be read; the message says why."""


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise BadCard("YAML aliases (*name) are not allowed in a model card")
        if self._depth >= MAX_DEPTH:
            raise BadCard(f"the YAML of a model card may be {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_head(card: str) -> dict[str, Any]:
    """Return the YAML head of a card as JSON-ready values; an empty one if there is none.

    Raises:
        BadCard: There is a head that cannot be read.
    """
    found = _HEAD.match(card[: MAX_HEAD_CHARS + 100])
    if not found:
        return {}
    try:
        # Derived from SafeLoader: no Python objects.
        value = _plain(yaml.load(found[1], _Loader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise BadCard(f"the YAML between the --- lines is broken: {problem}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadCard("the YAML between the --- lines must be a mapping, such as `license: apache-2.0`")
    return value


def body_of(card: str) -> str:
    """Return a card without its head."""
    return _HEAD.sub("", card, count=1)


def problems_of_card(card: str) -> tuple[list[str], list[str]]:
    """Return the errors, which forbid a commit, and the warnings of a card."""
    try:
        head = read_head(card)
    except BadCard as error:
        return [str(error)], []
    if not head:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    if "model-index" in head and not isinstance(head["model-index"], list):
        errors.append('"model-index" must be an array')
    if not set(_texts(head.get("license"))) <= LICENSES:
        errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    for name in ("license", "pipeline_tag", "library_name"):
        if not isinstance(head.get(name, ""), str | list):
            errors.append(f'"{name}" must be a string')
    if not isinstance(head.get("tags", []), list | str | None):
        errors.append('"tags" must be an array')
    return errors, []


def tags_of(head: dict[str, Any]) -> list[str]:
    """Return the tags by which a repository can be found, from its card's head."""
    values = {name: _texts(head.get(name)) for name in _LISTS}
    tags = values["tags"] + values["library_name"] + values["pipeline_tag"] + values["language"]
    tags += [f"license:{name}" for name in values["license"]]
    tags += [f"dataset:{name}" for name in values["datasets"]]
    tags += [f"base_model:{name}" for name in values["base_model"]]
    if relation := text_of(head, "base_model_relation"):
        tags += [f"base_model:{relation}:{name}" for name in values["base_model"]]
    return list(dict.fromkeys(tags))[:MAX_TAGS]


def text_of(head: dict[str, Any], name: str) -> str | None:
    """Return an entry of the head if it is a text."""
    value = head.get(name)
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    # What JSON has no way to write: 1e400, or a hexadecimal number of a million digits.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond 64 bits"
    return value if isinstance(value, str | int | float | bool | None) else str(value)
