"""The card of a package names the hub's model from which it was fine-tuned, and no other."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from eca_hub.hub.push import push_folder
from tests.localhub.hub_process import Hub
from tests.train.runs import CONFIG, fit

FROM = "--model.from_pretrained"
ONE_EPOCH = CONFIG.replace("max_epochs: 3", "max_epochs: 1")


@pytest.mark.slow
def test_a_network_fine_tuned_from_a_model_of_the_hub_names_it(
    hub: Hub, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    push_folder(tiny_package, "acme/base")
    assert fit(tmp_path / "run", FROM, "acme/base", "--push_to", "acme/tuned", config=ONE_EPOCH) == 0
    base, tuned = (HfApi().model_info(model_id) for model_id in ("acme/base", "acme/tuned"))
    assert tuned.card_data is not None
    assert tuned.card_data.base_model == "acme/base"
    assert tuned.card_data.get("base_model_relation") == "finetune"
    assert {"base_model:acme/base", "base_model:finetune:acme/base"} <= set(tuned.tags or [])
    assert base.card_data is not None
    assert base.card_data.base_model is None


@pytest.mark.slow
@pytest.mark.parametrize("start", ["folder", "scratch"])
def test_a_network_trained_from_a_folder_or_from_scratch_names_no_base_model(
    start: str, tiny_package: Path, tmp_path: Path
) -> None:
    options = (FROM, str(tiny_package)) if start == "folder" else ()
    assert fit(tmp_path / "run", *options, config=ONE_EPOCH) == 0
    card = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    assert not {"base_model", "base_model_relation"} & card.data.to_dict().keys()
    assert "fine-tuned from" not in card.content
