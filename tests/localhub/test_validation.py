"""Names that the local hub accepts."""

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.hub.client import check_new_ref
from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.validation import check_ref_name


@pytest.mark.parametrize("name", ["v1", "feature/x", "refs", "v1.0+cu118", "_a@b=c", "v" * 256])
def test_a_branch_that_the_client_sends_is_accepted(name: str) -> None:
    check_new_ref("branch", name)
    assert check_ref_name(name, "branch") == name


@pytest.mark.parametrize(
    "name",
    ["", "v" * 257, "a..b", "a/.b", "a/", "a//b", "v1.", "-v1", "a b", "a\n", "x.lock/y", "refs/x", "c" * 40],
)
def test_a_branch_that_the_client_refuses_to_send_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig):
        check_new_ref("branch", name)
    with pytest.raises(HubHTTPError, match="Invalid reference for a branch"):
        check_ref_name(name, "branch")
