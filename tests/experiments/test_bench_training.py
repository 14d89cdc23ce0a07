"""The bench of training: rows are kept between calls, aims are ratios of what was measured, and a row really runs."""

import json
from pathlib import Path

import pytest

from eca_hub.errors import InvalidUsage
from experiments.bench.training import Row, main
from experiments.bench.training_images import write_images

NUMBERS = {"ours_first": 80.0, "ours_later": 120.0, "peers": {"timm": 100.0, "torchvision": 60.0}}
STEP = Row("photos", "the step", "made up", "2026-01-01 00:00", limit=125.0, **NUMBERS)  # type: ignore[arg-type]
DECODING = Row("loader", "decoding", "made up", "2026-01-01 00:00", limit=None, **NUMBERS)  # type: ignore[arg-type]


def test_where_the_step_dominates_the_aim_is_a_share_of_the_limit() -> None:
    assert STEP.aims() == ["0.96 of the limit (aim 0.95)"]


def test_where_decoding_dominates_the_aims_are_ratios_to_the_others_and_the_first_epoch_is_shown() -> None:
    assert DECODING.aims() == [
        "1.20 times timm (aim 1.2; first epoch 0.80)",
        "2.00 times torchvision (aim 1.2; first epoch 1.33)",
    ]


def test_a_report_prints_what_earlier_calls_have_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    profile = {"decode": 10.0, "augment": 5.0, "forward": 35.0, "backward": 45.0, "optimizer": 4.0, "loop": 1.0}
    start = {"floor_s": 4.0, "first_step_s": 5.0}
    results.write_text(json.dumps({"loader": vars(DECODING), "start": start, "profile": profile}))
    assert main(["--report", "--results", str(results)]) == 0
    output = capsys.readouterr().out
    assert "loader" in output
    assert "photos" not in output
    assert "start: first step after 5.00 s, imports and network 4.00 s   1.25 x (aim at most 1.3)" in output
    assert "decode 10.0 ms (10.0%)  augment 5.0 ms (5.0%)  forward 35.0 ms (35.0%)" in output


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidUsage, match=r"There is no row 'phots'. Rows: photos, cifar10, thumbnails, loader, start"
    ):
        main(["--only", "photos,phots"])


def test_images_are_class_folders_of_which_some_are_also_in_val(tmp_path: Path) -> None:
    write_images(tmp_path, "cifar10", 30, 10, None)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 30
    assert len({path.parent.name for path in tmp_path.glob("train/*/*.jpg")}) == 10
    assert len(list(tmp_path.glob("val/*/*.jpg"))) == 10


@pytest.mark.slow
def test_a_row_is_measured_and_added_to_those_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"loader": vars(DECODING)}))
    assert main(["--only", "cifar10", "--quick", "--results", str(results)]) == 0
    rows = json.loads(results.read_text())
    assert set(rows) == {"loader", "cifar10"}
    assert min(rows["cifar10"]["ours_later"], rows["cifar10"]["limit"], *rows["cifar10"]["peers"].values()) > 0
    assert "of the limit (aim 0.95)" in capsys.readouterr().out
