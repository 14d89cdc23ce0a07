"""The model card: only what was measured, valid for the Hub, and safe to show."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from eca_hub.errors import InvalidConfig
from eca_hub.hub.card.classifier_card import render_card
from eca_hub.hub.card.detector_card import render_detector_card
from eca_hub.hub.card.edit import license_facts, read_metadata, set_license, set_model_id
from eca_hub.hub.card.facts import CardFacts, Result
from eca_hub.hub.card.sections import MODEL_ID_PLACEHOLDER, escape, sparkline
from eca_hub.localhub.card_metadata import read_metadata as hub_metadata
from eca_hub.models.complexity import count_complexity
from eca_hub.models.detector_config import DetectorConfig
from tests.conftest import TINY

COST = count_complexity(TINY)


def test_the_metadata_is_what_the_hub_reads() -> None:
    facts = CardFacts(
        title="eca_tiny",
        license="apache-2.0",
        results=(Result("scikit-learn digits", "test", "accuracy", 0.9875, 360),),
    )
    data = ModelCard(render_card(TINY, COST, facts)).data
    assert isinstance(data, ModelCardData)
    assert data.library_name == "eca-hub"
    assert data.pipeline_tag == "image-classification"
    assert data.license == "apache-2.0"
    [result] = data.eval_results or []
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("scikit-learn digits", "accuracy", 0.9875)


def test_the_page_shows_the_network_and_the_measured_number() -> None:
    page = render_card(TINY, COST, CardFacts(results=(Result("digits", "test", "accuracy", 0.5, 10),)))
    assert f"`eca_resnet20`, {COST.num_parameters:,} parameters" in page
    assert f"{COST.multiply_adds / 1e6:.1f} million multiply-adds" in page
    assert "attention: `eca`" in page
    assert "## Limits and bias" in page
    assert "## Citation" in page
    assert "| digits | test | 10 | accuracy | 0.5000 |" in page
    assert "3 classes: cat, dog, eel" in page


def test_the_page_shows_training_with_curves_and_the_base_model() -> None:
    facts = CardFacts(
        recipe={"epochs": "3"},
        curves={"val_top1": [0.1, 0.5, 0.9]},
        datasets=("acme/digits",),
        base_model="timm/ecaresnet50d.miil_in1k",
    )
    page = render_card(TINY, COST, facts)
    data = ModelCard(page).data
    assert isinstance(data, ModelCardData)
    assert (data.datasets, data.base_model) == (["acme/digits"], "timm/ecaresnet50d.miil_in1k")
    assert data.get("base_model_relation") == "finetune"
    assert "- epochs: 3" in page
    assert "▁▅█ from 0.1 to 0.9" in page
    assert "fine-tuned from `timm/ecaresnet50d.miil_in1k`" in page


@pytest.mark.parametrize(
    "metadata",
    ["license: mit", "license: mit # as LICENSE", "license:\n- mit\n- apache-2.0\ntags: [a]", "tags: [a]", ""],
)
def test_a_license_is_put_into_the_metadata(metadata: str) -> None:
    edited = set_license(f"---\n{metadata}\n---\n# Title\n".encode(), "cc-by-4.0")
    assert read_metadata(edited)["license"] == "cc-by-4.0"


def test_name_and_link_of_the_license_before_are_removed() -> None:
    card = b"---\nlicense: other\nlicense_name: x\nlicense_link: https://x\ntags: [a]\n---\n# Title\n"
    assert read_metadata(set_license(card, "mit")) == {"license": "mit", "tags": ["a"]}
    own = b"---\nlicense: other\nlicense_name: x\n---\n"
    assert read_metadata(set_license(own, "other")) == {"license": "other", "license_name": "x"}


@pytest.mark.parametrize(
    "metadata", ['"license": mit', "license : mit", "? license\n: mit", "{license: mit, tags: [a]}", "  tags: [a]"]
)
def test_metadata_in_which_the_license_cannot_be_changed_is_refused(metadata: str) -> None:
    with pytest.raises(InvalidConfig, match=r"Write license: cc-by-4\.0 on a line of its own"):
        set_license(f"---\n{metadata}\n---\n# Title\n".encode(), "cc-by-4.0")


@pytest.mark.parametrize("value", ['!!int ""', '!!bool "x"', '!!timestamp "x"', "!!float", "[", "&x [*x", "2024-13-45"])
def test_metadata_that_cannot_be_read_is_refused(value: str) -> None:
    with pytest.raises(InvalidConfig, match=r"The metadata of the model card README\.md cannot be read: "):
        read_metadata(f"---\na: {value}\n---\n".encode())


def test_a_data_set_without_latin_letters_still_has_a_type() -> None:
    data = ModelCard(render_card(TINY, COST, CardFacts(results=(Result("猫狗", "test", "accuracy", 0.5, 8),)))).data
    assert isinstance(data, ModelCardData)
    [result] = data.eval_results or []
    assert (result.dataset_type, result.dataset_name) == ("imagefolder", "猫狗")


def test_no_license_is_claimed_and_a_given_one_is_in_the_metadata_and_on_the_page() -> None:
    card = render_card(TINY, COST, CardFacts()).encode()
    assert "license" not in read_metadata(card)
    licensed = set_license(card, "mit")
    assert read_metadata(licensed) == {**read_metadata(card), "license": "mit"}
    assert b"Of the weights: mit." in licensed
    again = set_license(licensed, "apache-2.0")
    assert read_metadata(again)["license"] == "apache-2.0"
    assert b"Of the weights: apache-2.0." in again
    assert b"weights: mit" not in again
    assert read_metadata(set_license(b"# Mine\n", "mit")) == {"license": "mit"}
    with pytest.raises(InvalidConfig, match="license is 'M I T'"):
        set_license(card, "M I T")
    earlier = card.replace(
        b"The license of the weights is not stated here.", b"The authors of the weights have not stated a license."
    )
    assert set_license(earlier, "mit") == licensed


def test_metadata_below_a_blank_line_stay_when_the_license_is_set() -> None:
    card = b"\n\n---\ntags: [pets]\n---\n\n# Mine\n"
    licensed = set_license(card, "mit")
    assert read_metadata(licensed) == hub_metadata(licensed.decode()) == {"license": "mit", "tags": ["pets"]}
    assert licensed.count(b"---") == 2


@pytest.mark.parametrize(
    ("card", "document", "expected"),
    [
        (b"---\nlicense: mit\n---\n", {"pretrained_cfg": {"license": "apache-2.0"}}, "mit"),
        (b"# Mine", {"pretrained_cfg": {"license": "apache-2.0"}}, "apache-2.0"),
        (b"", {"pretrained_cfg": {"license": "see the page of the authors"}}, ""),
        (b"---\nlicense: [a, b]\n---\n", {"pretrained_cfg": 3}, ""),
    ],
)
def test_the_license_of_a_package_is_that_of_its_card_or_of_timms_config(
    card: bytes, document: dict[str, Any], expected: str
) -> None:
    assert license_facts(card, json.dumps(document).encode()) == CardFacts(license=expected)


def test_a_license_that_the_hub_does_not_know_is_other_with_its_name() -> None:
    facts = license_facts(b"", json.dumps({"pretrained_cfg": {"license": "seer-license"}}).encode())
    page = render_card(TINY, COST, facts).encode()
    metadata = read_metadata(page)
    assert (metadata["license"], metadata["license_name"]) == ("other", "seer-license")
    assert b"Of the weights: seer-license." in page
    replaced = set_license(page, "mit")
    assert b"Of the weights: mit." in replaced
    assert b"seer-license" not in replaced


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (
            "license: other\nlicense_name: x\nlicense_link: https://x.org/LICENSE",
            CardFacts(license="other", license_name="x", license_link="https://x.org/LICENSE"),
        ),
        ("license: other\nlicense_name: x\nlicense_link: LICENSE", CardFacts(license="other", license_name="x")),
        ("license: other\nlicense_name: [x]\nlicense_link: 3", CardFacts(license="other")),
        ("license: mit\nlicense_name: x", CardFacts(license="mit")),
    ],
)
def test_name_and_address_of_another_license_are_carried_along(stated: str, expected: CardFacts) -> None:
    assert license_facts(f"---\n{stated}\n---\n".encode(), b"{}") == expected


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("a: " + ":".join(["1"] * 40_000), "at most 64000 characters"),
        ("a: [" + "1," * 40_000 + "]", "at most 64000 characters"),
        ("a: &x [1, 1]\nb: &y [*x, *x]\nc: [*y, *y]", "aliases"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "aliases"),
        ("a: " + "[" * 40 + "]" * 40, "at most 30 levels"),
    ],
    ids=["base 60", "many values", "aliases", "merge keys", "nested"],
)
def test_a_card_that_would_take_long_to_parse_is_said_to_state_no_license(
    metadata: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    card = f"---\nlicense: mit\n{metadata}\n---\n".encode()
    assert license_facts(card, b"{}") == CardFacts()
    assert reason in caplog.text
    assert "A license stated there is not used." in caplog.text


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("2026-11-28, eca_resnet50 (v1.2) + 3 ~ 4 #1", "2026-11-28, eca_resnet50 (v1.2) + 3 ~ 4 #1"),
        ("_private_ *bold*", r"\_private\_ \*bold\*"),
        ("http://example.org", r"http:\//example.org"),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_only_characters_with_a_meaning_are_escaped(name: str, escaped: str) -> None:
    assert escape(name) == escaped


def test_a_sparkline_is_short_and_keeps_the_last_value() -> None:
    assert sparkline([1.0]) == "▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(list(range(1000)))) <= 61
    assert sparkline(list(range(1000)))[-1] == "█"


def test_the_metadata_names_timm_if_timm_loads_the_package() -> None:
    data = ModelCard(render_card(TINY, COST, CardFacts(), is_timm=True)).data
    assert isinstance(data, ModelCardData)
    assert data.library_name == "timm"
    assert {"timm", "transformers"} <= set(data.tags or [])


def test_a_card_without_results_claims_none() -> None:
    page = render_card(TINY, COST, CardFacts())
    assert "Results" not in page
    assert "model-index" not in page
    assert "base_model" not in page


def test_class_names_cannot_break_out_of_the_page() -> None:
    hostile = ("<script>alert(1)</script>", "[x](javascript:y)", "a | b\n# heading")
    page = render_card(dataclasses.replace(TINY, labels=hostile), COST, CardFacts())
    assert "<script" not in page
    assert "[x](" not in page
    assert "\n# heading" not in page


def card(*, is_timm: bool = False) -> bytes:
    return render_card(TINY, count_complexity(TINY), CardFacts(), is_timm=is_timm).encode()


@pytest.mark.parametrize(("is_timm", "num_lines"), [(False, 2), (True, 3)])
def test_every_line_of_the_usage_section_names_the_model(is_timm: bool, num_lines: int) -> None:
    named = set_model_id(card(is_timm=is_timm), "acme/eca_tiny")
    assert named == card(is_timm=is_timm).replace(MODEL_ID_PLACEHOLDER.encode(), b"acme/eca_tiny")
    assert named.count(b"acme/eca_tiny") == num_lines
    assert MODEL_ID_PLACEHOLDER.encode() not in named


def test_a_card_of_version_0_1_0_is_named_too() -> None:
    of_0_1_0 = set_model_id(card(), "acme/old").replace(b"image.png", b"picture.png")
    renamed = set_model_id(card(), "acme/new")
    # The section about embeddings names no model, so it stays as it was written.
    assert set_model_id(of_0_1_0, "acme/new") == renamed.replace(b'decode("image.png")', b'decode("picture.png")')


@pytest.mark.parametrize("is_timm", [False, True])
def test_naming_twice_is_naming_once_and_another_repository_renames(is_timm: bool) -> None:
    once = set_model_id(card(is_timm=is_timm), "acme/eca_tiny")
    assert set_model_id(once, "acme/eca_tiny") == once
    assert set_model_id(once, "other/copy") == set_model_id(card(is_timm=is_timm), "other/copy")


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
    assert set_model_id(own, "acme/eca_tiny") == own
    assert set_model_id(own + card() + own, "acme/eca_tiny") == own + set_model_id(card(), "acme/eca_tiny") + own


def test_a_line_with_the_placeholder_is_named_also_where_the_section_was_changed() -> None:
    changed = card().replace(b"image.png", b"cat.png")
    assert set_model_id(changed, "acme/eca_tiny") == changed.replace(MODEL_ID_PLACEHOLDER.encode(), b"acme/eca_tiny")


FACTS = CardFacts(
    results=(
        Result("Oxford pets, 37 kinds", "test", "accuracy", 0.91, 3669),
        Result("Oxford pets, 37 kinds", "test", "macro F1", 0.9012345678, 3669),
    ),
    recipe={"data": "Oxford pets, 3680 training images", "time": "12 s"},
    plots={"curves.png": "Loss and accuracy by epoch", "confusion.png": "Confusion matrix of the test split"},
    datasets=("acme/pets",),
    base_model="acme/eca_resnet50",
    measured_on="2026-11-28 on 1 x NVIDIA H200, eca-hub 0.1.0",
    command="eca-hub fit -c pets.yaml --model.optim.lr 0.01",
    commit="3f9c1d2",
    seed=7,
)
SEVERAL = dataclasses.replace(TINY, problem_type="multi_label_classification")
DETECTOR = DetectorConfig("mask_rcnn", "resnet18", labels=("bar", "disk"))


@pytest.mark.parametrize(
    ("page", "task"),
    [
        (render_card(TINY, COST, FACTS, is_timm=True), "image-classification"),
        (render_card(SEVERAL, COST, FACTS), "image-classification"),
        (render_detector_card(DETECTOR, 44_000_000, FACTS), "object-detection"),
    ],
    ids=["one label", "several labels", "detector"],
)
def test_the_hubs_own_classes_read_the_metadata_and_write_the_same(page: str, task: str, tmp_path: Path) -> None:
    card = ModelCard(page)
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.pipeline_tag, data.datasets, data.base_model) == (task, ["acme/pets"], "acme/eca_resnet50")
    assert data.license is None
    assert "arxiv:1910.03151" in (data.tags or [])
    for found, fact in zip(data.eval_results or [], FACTS.results, strict=True):
        assert isinstance(found, EvalResult)
        assert (found.task_type, found.dataset_name, found.metric_name) == (task, fact.dataset, fact.metric)
        assert found.metric_value == round(fact.value, 6)
    card.save(tmp_path / "README.md")
    metadata: dict[str, object] = data.to_dict()  # type: ignore[no-untyped-call]
    assert metadata_load(tmp_path / "README.md") == metadata == read_metadata(page.encode())
    # What the local hub checks before a commit: YAML without aliases, of plain values, in its limits.
    assert hub_metadata(page) == metadata


def test_the_page_of_a_run_says_how_it_was_made_and_shows_its_plots() -> None:
    page = render_card(TINY, COST, FACTS)
    assert "| Oxford pets, 37 kinds | test | 3669 | macro F1 | 0.9012 |" in page
    assert "Measured 2026-11-28 on 1 x NVIDIA H200, eca-hub 0.1.0." in page
    assert "![Confusion matrix of the test split](confusion.png)" in page
    assert "```sh\neca-hub fit -c pets.yaml --model.optim.lr 0.01\n```" in page
    assert "- seed: 7\n- code: commit `3f9c1d2`" in page
    assert f"and {COST.num_activations / 1e6:.2f} million activations" in page
    assert "network.forward_head(network.forward_features(pixels), pre_logits=True)" in page
    assert "https://github.com/BangguWu/ECANet" in page
    assert "\\" not in page.split("## Citation")[0]
