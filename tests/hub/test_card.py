"""The model card: only what was measured, valid for the Hub, and safe to show."""

import dataclasses

from huggingface_hub import ModelCard, ModelCardData

from eca_hub.hub.card import CardFacts, Result, render_card
from tests.conftest import TINY


def test_the_metadata_is_what_the_hub_reads() -> None:
    facts = CardFacts(title="eca_tiny", results=(Result("scikit-learn digits", "test", "accuracy", 0.9875, 360),))
    data = ModelCard(render_card(TINY, 336_851, facts)).data
    assert isinstance(data, ModelCardData)
    assert data.library_name == "eca-hub"
    assert data.pipeline_tag == "image-classification"
    assert data.license == "apache-2.0"
    [result] = data.eval_results or []
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("scikit-learn digits", "accuracy", 0.9875)


def test_the_page_tells_the_network_and_the_measured_number() -> None:
    page = render_card(TINY, 336_851, CardFacts(results=(Result("digits", "test", "accuracy", 0.5, 10),)))
    assert "`eca_resnet20`, 336,851 parameters" in page
    assert "| digits | test | 10 | accuracy | 0.5000 |" in page
    assert "3 classes: cat, dog, eel" in page


def test_a_card_without_results_claims_none() -> None:
    page = render_card(TINY, 1, CardFacts())
    assert "Results" not in page
    assert "model-index" not in page


def test_class_names_cannot_break_out_of_the_page() -> None:
    hostile = ("<script>alert(1)</script>", "[x](javascript:y)", "a | b\n# heading")
    page = render_card(dataclasses.replace(TINY, labels=hostile), 1, CardFacts())
    assert "<script" not in page
    assert "[x](" not in page
    assert "\n# heading" not in page
