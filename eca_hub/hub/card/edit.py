"""Change the model card of a package: the name of the model, the license. Imports no torch."""

import contextlib
import json
import logging
import re
from functools import partial
from typing import Any, TypeGuard

from eca_hub.card_yaml import InvalidCard, parse_card_yaml
from eca_hub.errors import InvalidConfig
from eca_hub.hub.card.classifier_card import usage_section
from eca_hub.hub.card.detector_card import detector_usage_section
from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.card.sections import MODEL_ID_PLACEHOLDER, NO_LICENSE, license_sentence

_log = logging.getLogger(__name__)

_EARLIER_NO_LICENSE = "The authors of the weights have not stated a license."
"""What version 0.1.0 wrote in place of `NO_LICENSE`."""
# fmt: off
_HUB_LICENSES = frozenset([
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "grok2-community",
    "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by",
    "ofl-1.1", "openmdw-1.0", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql", "unknown",
    "unlicense", "wtfpl", "zlib",
])
# fmt: on
"""The ids of https://huggingface.co/docs/hub/repositories-licenses; the Hub refuses a card with another one."""
# The Hub allows white space before the metadata.
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def set_model_id(card: bytes, model_id: str) -> bytes:
    """Put the id of the model into the usage section that eca-hub wrote; every other byte of the card stays.

    Replaced are the section as a whole, whichever model it named, and single lines of it with the placeholder. The same
    card and id always give the same bytes.

    Args:
        card: README.md of the package.
        model_id: Hub `owner/name`.
    """
    text = card.decode("utf-8", "surrogateescape")
    sections = (partial(usage_section, is_timm=False), partial(usage_section, is_timm=True), detector_usage_section)
    for section in sections:
        pattern = re.escape(section(MODEL_ID_PLACEHOLDER)).replace(re.escape(MODEL_ID_PLACEHOLDER), r"[\w.-]+/[\w.-]+")
        # Version 0.1.0 called the image picture.png.
        pattern = pattern.replace(re.escape("image.png"), r"(?:image|picture)\.png")
        named = section(model_id)
        text = re.sub(pattern, lambda _, named=named: named, text)  # type: ignore[misc]
        for line in section(MODEL_ID_PLACEHOLDER).splitlines():
            if MODEL_ID_PLACEHOLDER in line:
                text = text.replace(line, line.replace(MODEL_ID_PLACEHOLDER, model_id))
    return text.encode("utf-8", "surrogateescape")


def set_license(card: bytes, license_id: str) -> bytes:
    """Put a license into the metadata of a card, and into the sentence about the license that eca-hub wrote.

    Args:
        card: README.md of the package.
        license_id: License as the Hub spells it, such as `apache-2.0`.

    Raises:
        InvalidConfig: this is not an id, the metadata of the card cannot be read, or it is written in a way that this
            function does not change.
    """
    if not _is_license_id(license_id):
        raise InvalidConfig(f"license is {license_id!r}; the Hub's ids are like apache-2.0, mit or cc-by-4.0.")
    metadata, text = read_metadata(card), card.decode("utf-8-sig")
    if metadata.get("license") != license_id:
        line = f"license: {license_id}\n"
        match = _FRONT_MATTER.match(text)
        if match is None:
            text = f"---\n{line}---\n\n{text}"
        elif re.search(r"^license:.*$", match[1], re.MULTILINE):
            # Name and link are those of the license that is replaced.
            head = re.sub(r"^license_(?:name|link):.*\r?\n?", "", match[1], flags=re.MULTILINE)
            head = re.sub(r"^license:.*\r?\n?(?:[ \t]*- .*\r?\n?|[ \t]+.*\r?\n?)*", line, head, flags=re.MULTILINE)
            text = text[: match.start(1)] + head + text[match.end(1) :]
        else:
            text = text[: match.start(1)] + line + text[match.start(1) :]
        if not _has_license(text.encode(), license_id):
            raise InvalidConfig(
                "The metadata of the model card README.md is written in a way in which its license cannot be changed.",
                hint=f"Write license: {license_id} on a line of its own between the --- lines.",
            )
    before = [NO_LICENSE, _EARLIER_NO_LICENSE, license_sentence(str(metadata.get("license")))]
    if metadata.get("license") != license_id:
        before.append(license_sentence(str(metadata.get("license_name"))))
    for sentence in before:
        text = text.replace(sentence, license_sentence(license_id))
    return text.encode()


def license_facts(card: bytes, config_bytes: bytes) -> CardFacts:
    """Return the license that a package states: in its card, else in the `pretrained_cfg` of timm's config.json.

    A card that cannot be read is logged as a warning and states none.

    Args:
        card: README.md of the package; empty if it has none.
        config_bytes: Its config.json.

    Returns:
        Facts with the license alone, as the Hub spells it: `other` and a name where the Hub does not know the id. No
        license if there is none, or it is spelled in another way.
    """
    statements: list[object] = []
    try:
        statements.append(read_metadata(card))
    except InvalidConfig as error:
        _log.warning("%s A license stated there is not used.", error.message)
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(config_bytes)
        statements.append(document.get("pretrained_cfg") if isinstance(document, dict) else None)
    for statement in statements:
        license_id = statement.get("license") if isinstance(statement, dict) else None
        if isinstance(statement, dict) and _is_license_id(license_id):
            if license_id not in _HUB_LICENSES:
                return CardFacts(license="other", license_name=license_id)
            name, link = statement.get("license_name"), statement.get("license_link")
            # A link to a file of the package, such as LICENSE, does not lead there from another one.
            is_address = isinstance(link, str) and re.fullmatch(r"https?://[!-~]{1,2000}", link)
            return CardFacts(
                license=license_id,
                license_name=name if license_id == "other" and _is_license_id(name) else "",
                license_link=str(link) if license_id == "other" and is_address else "",
            )
    return CardFacts()


def _is_license_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", value) is not None


def _has_license(card: bytes, license_id: str) -> bool:
    with contextlib.suppress(InvalidConfig):
        return read_metadata(card).get("license") == license_id
    return False


def read_metadata(card: bytes) -> dict[str, Any]:
    """Return the YAML metadata at the start of a card; an empty dict if there is none.

    Raises:
        InvalidConfig: the card is not UTF-8, or its metadata cannot be read.
    """
    try:
        match = _FRONT_MATTER.match(card.decode("utf-8-sig"))
        return parse_card_yaml(match[1]) if match else {}
    except UnicodeDecodeError as error:
        raise InvalidConfig(
            f"The model card README.md is not UTF-8: byte {error.start} is {card[error.start]:#04x}.",
            hint="Save it as UTF-8.",
        ) from None
    except InvalidCard as error:
        raise InvalidConfig(f"The metadata of the model card README.md cannot be read: {error}.") from None
