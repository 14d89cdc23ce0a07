"""The speeds of a sweep's networks, timed in turns."""

import json
from pathlib import Path
from typing import Any

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.sweep.grid import SweepRun
from eca_hub.sweep.speeds import BATCH_SIZE, measure_speeds, network_folders, with_baseline
from tests.sweep.test_queue import CONFIG

OPTIONS = "model: {channels_last: true}\ntrainer: {precision: 32-true}\n"


def run_of(attention: str, seed: int) -> SweepRun:
    return SweepRun(
        f"{attention}{seed}", f"{attention}{seed}", "shared", {"model.attention": attention, "seed": seed}, ()
    )


RUNS = [run_of(attention, seed) for seed in (0, 1) for attention in ("none", "eca")]


def finish(run_dir: Path, **config: Any) -> None:
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (run_dir / "config.yaml").write_text(OPTIONS)


def test_a_network_is_what_differs_in_more_than_the_seed(tmp_path: Path) -> None:
    folders = {'{"attention": "none"}': tmp_path / "none0", '{"attention": "eca"}': tmp_path / "eca1"}
    assert network_folders(RUNS, tmp_path, ["eca0"]) == (folders, [])


def test_the_first_network_is_that_of_the_sweep_also_if_its_first_run_has_no_folder(tmp_path: Path) -> None:
    networks, _ = network_folders(RUNS, tmp_path, ["none0"])
    assert list(networks.values()) == [tmp_path / "none1", tmp_path / "eca0"]


def test_a_network_without_a_folder_is_left_out(tmp_path: Path) -> None:
    networks, left_out = network_folders(RUNS, tmp_path, ["eca0", "eca1"])
    assert networks == {'{"attention": "none"}': tmp_path / "none0"}
    assert left_out == ['{"attention": "eca"}']


def test_networks_take_turns_and_are_compared_with_the_first(tmp_path: Path) -> None:
    finish(tmp_path / "none0", attention="none", attention_args={})
    finish(tmp_path / "eca0")
    turns: list[tuple[int, int]] = []
    rows = measure_speeds(
        network_folders(RUNS, tmp_path, [])[0], report=lambda turn, of: turns.append((turn, of)), num_turns=2
    )
    assert turns == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first, second = rows
    assert [(row["run"], row["attention"]) for row in rows] == [("none0", "none"), ("eca0", "eca")]
    assert (first["training_time_ratio"], first["inference_time_ratio"]) == (1.0, 1.0)
    assert second["training_time_ratio"] > 0
    assert 0 < first["training_images_per_s"] < first["inference_images_per_s"]
    assert {row["batch_size"] for row in rows} == {BATCH_SIZE}


@pytest.mark.parametrize("attention", ["none", "eca"])
def test_the_network_of_another_sweep_is_the_first_if_it_is_the_baseline(attention: str, tmp_path: Path) -> None:
    finish(tmp_path / "other", attention=attention, attention_args={})
    (tmp_path / "other" / "config.yaml").write_text(f"model: {{attention: {attention}}}\n")
    networks = with_baseline(network_folders(RUNS, tmp_path, [])[0], RUNS, tmp_path / "other")
    rest = {"none": tmp_path / "none0", "eca": tmp_path / "eca0"}
    del rest[attention]
    assert list(networks.values()) == [tmp_path / "other", *rest.values()]
    assert [json.loads(name)["attention"] for name in networks] == [attention, *rest]


def test_detection_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for run in RUNS:
        finish(tmp_path / run.name, task="object-detection")
    with pytest.raises(InvalidConfig, match=r"--speeds times classifiers; .* has a detector"):
        measure_speeds(network_folders(RUNS, tmp_path, [])[0], report=lambda turn, of: None)
