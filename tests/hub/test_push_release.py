"""A release is published like any package, with the id of its repository in its card."""

import pytest
from huggingface_hub import constants

from eca_hub import Classifier
from eca_hub.__main__ import main
from eca_hub.hub.pull import pull
from tests.localhub.hub_process import Hub

SMALL = "eca_resnet20.cifar10"


def test_a_release_is_published_by_its_name(hub: Hub, model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as during_push:
        during_push.setattr(constants, "ENDPOINT", hub.url)
        during_push.setenv("HF_TOKEN", hub.token)
        assert main(["push", "--release", SMALL, model_id]) == 0
    published = Classifier.from_pretrained(model_id, endpoint=hub.url)
    assert published.config.labels == Classifier.from_pretrained(SMALL).config.labels
    assert bytes(pull(model_id, endpoint=hub.url).weights_bytes) == bytes(pull(SMALL).weights_bytes)
