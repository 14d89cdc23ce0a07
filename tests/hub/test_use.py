"""The lines of use in a card: named for the repository they stand in, and nothing else of the card touched."""

import pytest

from eca_hub.hub.card import CardFacts, render_card
from eca_hub.hub.use import PLACEHOLDER, name_model
from eca_hub.models.complexity import count_complexity
from tests.conftest import TINY


def card(*, is_timm: bool = False) -> bytes:
    return render_card(TINY, count_complexity(TINY), CardFacts(), is_timm=is_timm).encode()


@pytest.mark.parametrize(("is_timm", "num_lines"), [(False, 2), (True, 3)])
def test_every_line_of_use_names_the_model(is_timm: bool, num_lines: int) -> None:
    named = name_model(card(is_timm=is_timm), "acme/eca_tiny")
    assert named == card(is_timm=is_timm).replace(PLACEHOLDER.encode(), b"acme/eca_tiny")
    assert named.count(b"acme/eca_tiny") == num_lines
    assert PLACEHOLDER.encode() not in named


@pytest.mark.parametrize("is_timm", [False, True])
def test_naming_twice_is_naming_once_and_another_repository_renames(is_timm: bool) -> None:
    once = name_model(card(is_timm=is_timm), "acme/eca_tiny")
    assert name_model(once, "acme/eca_tiny") == once
    assert name_model(once, "other/copy") == name_model(card(is_timm=is_timm), "other/copy")


@pytest.mark.parametrize(
    "own",
    [
        b"Published as OWNER/NAME by its owner.\n",
        b'classifier = eca_hub.Classifier.from_pretrained("acme/base")  # this repository, or a folder\n',
        b"eca-hub serve --model acme/base --port 8000\n",
        b"\r\nWindows\r\n \xff\xfe not text \\1 \\g<0>\r\n",
        b"",
    ],
)
def test_what_the_user_wrote_stays(own: bytes) -> None:
    assert name_model(own, "acme/eca_tiny") == own
    assert name_model(own + card() + own, "acme/eca_tiny") == own + name_model(card(), "acme/eca_tiny") + own


def test_a_line_with_the_placeholder_is_named_also_where_the_section_was_changed() -> None:
    changed = card().replace(b"picture.png", b"cat.png")
    assert name_model(changed, "acme/eca_tiny") == changed.replace(PLACEHOLDER.encode(), b"acme/eca_tiny")
