"""Parse the YAML at the top of a model card, which is not trusted.

Refused are aliases, since they let a few lines expand to gigabytes, long metadata, since the time for some values grows
with the square of their length, and Python objects.
"""

from typing import Any

import yaml

MAX_METADATA_CHARS = 64_000
MAX_DEPTH = 30


class InvalidCard(Exception):
    """The metadata of a card cannot be read; the message says why."""


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise InvalidCard("YAML aliases (*name) are not allowed in a model card")
        if self._depth >= MAX_DEPTH:
            raise InvalidCard(f"the YAML of a model card may be at most {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def parse_card_yaml(text: str) -> dict[Any, Any]:
    """Return the metadata of a card; an empty dict if there are none.

    Args:
        text: What stands between the --- lines.

    Raises:
        InvalidCard: it is too long, is no YAML, has aliases, or is no mapping.
    """
    if len(text) > MAX_METADATA_CHARS:
        raise InvalidCard(f"the YAML of a model card may be at most {MAX_METADATA_CHARS} characters long")
    try:
        # Derived from SafeLoader: no Python objects.
        value = yaml.load(text, _Loader)  # noqa: S506
    except InvalidCard:
        raise
    except yaml.MarkedYAMLError as error:
        line = f" on its line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidCard(f"the YAML between the --- lines is broken{line}: {error.problem}") from None
    # yaml raises exceptions of many types where a value does not fit an explicit tag, such as !!int "".
    except Exception:
        raise InvalidCard("the YAML between the --- lines is broken: a value in it cannot be read") from None
    if not isinstance(value, dict | None):
        raise InvalidCard("the YAML between the --- lines must be a mapping, such as `license: apache-2.0`")
    return value or {}
