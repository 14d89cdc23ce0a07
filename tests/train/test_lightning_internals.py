"""The private names of Lightning that training uses exist in the installed release."""

import lightning
import pytest

from eca_hub.train.lightning_internals import REQUIRED


@pytest.mark.parametrize(("owner", "name"), REQUIRED, ids=lambda part: getattr(part, "__name__", part))
def test_lightning_still_has_the_name(owner: type, name: str) -> None:
    assert hasattr(owner, name), (
        f"lightning {lightning.__version__} has no {owner.__name__}.{name}; adapt eca_hub/train/lightning_internals.py "
        "and the range of lightning in pyproject.toml."
    )
