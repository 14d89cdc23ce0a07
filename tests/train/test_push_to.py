"""`--push_to`: whether the hub will take the model is asked before training, not after it."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from eca_hub.errors import AccessDenied, HubUnavailable
from eca_hub.hub.push import check_push_access
from tests.localhub.hub_process import Hub, running_hub
from tests.train.runs import CONFIG, fit

USERS = {
    "ann": {"token": "token-of-ann", "orgs": ["acme"]},
    "bob": {"token": "token-of-bob", "role": "read"},
    "root": {"token": "token-of-root", "role": "admin"},
}


@pytest.fixture(scope="module")
def hub_of_three(tmp_path_factory: pytest.TempPathFactory) -> object:
    with running_hub(tmp_path_factory.mktemp("hub") / "hub", users=dict(USERS)) as running:
        HfApi(running.url, token="token-of-root").create_repo("other/model")
        yield running


@pytest.mark.parametrize(
    ("token", "model_id"),
    [("ann", "ann/model"), ("ann", "Acme/model"), ("root", "other/model"), ("root", "new/model")],
)
def test_a_user_may_publish_below_the_own_name_and_those_of_organizations(
    token: str, model_id: str, hub_of_three: Hub
) -> None:
    check_push_access(model_id, endpoint=hub_of_three.url, token=f"token-of-{token}")
    assert not HfApi(hub_of_three.url, token="token-of-root").repo_exists("new/model")


@pytest.mark.parametrize(
    ("token", "model_id", "sentence"),
    [
        ("token-of-ann", "evil/model", "ann may not publish as evil/model. Allowed owners: ann, acme."),
        ("token-of-ann", "other/model", "The hub refused other/model"),
        ("token-of-bob", "bob/model", "The token of bob may not write, so bob/model cannot be published."),
        ("token-of-eve", "eve/model", "The hub refused eve/model"),
    ],
)
def test_a_user_who_may_not_publish_is_told(token: str, model_id: str, sentence: str, hub_of_three: Hub) -> None:
    with pytest.raises(AccessDenied) as refused:
        check_push_access(model_id, endpoint=hub_of_three.url, token=token)
    assert sentence in str(refused.value)


def test_a_hub_that_does_not_respond_is_named() -> None:
    with pytest.raises(HubUnavailable, match="The hub does not respond"):
        check_push_access("ann/model", endpoint="http://127.0.0.1:9", token="token-of-ann")


def test_without_a_token_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("eca_hub.hub.push.get_token", lambda: None)
    assert fit(tmp_path / "run", "--push_to", "acme/model", config=CONFIG) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "eca-hub fit: There is no token to publish acme/model with. Set HF_TOKEN, or run `hf auth login`.\n"
    )
    assert captured.out == ""
    assert not (tmp_path / "run").exists()
