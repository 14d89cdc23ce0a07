"""Time the networks of a sweep in turns: images a second of a training step and of inference, and ratios.

The speed of a run depends on what else the machine did; networks that take turns share that. A step of training is
forward, loss and backward, without the optimizer. Inference is the network alone, without decoding.
"""

import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import config_from_json, is_detector
from eca_hub.models.build import build_model
from eca_hub.models.config import ModelConfig
from eca_hub.models.gemm_conv import use_gemm_gradients
from eca_hub.sweep.grid import SEEDS, SweepRun, column_names
from eca_hub.sweep.results import Row, plain

BATCH_SIZE = 32
_NUM_WARM_UP_TURNS = 2
_NUM_TURNS = 15
_MODES = ("training", "inference")


def measure_speeds(
    networks: Mapping[str, Path], *, report: Callable[[int, int], None], num_turns: int = _NUM_TURNS
) -> list[Row]:
    """Time one network for each point of the grid that differs in more than its seed.

    Args:
        networks: A run folder of each network, from `network_folders`.
        report: Called before each turn, with its number from 1 and the number of turns.
        num_turns: How often each network is timed.

    Returns:
        A row a network: the run and its point of the grid; `training_images_per_s` and `inference_images_per_s` in its
        fastest turn; `training_time_ratio` and `inference_time_ratio`, the medians over the turns of its time divided
        by that of the first network; the batch size, threads and device.

    Raises:
        InvalidConfig: the files of a run cannot be read, or its network is a detector.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = {name: _Steps(folder, device) for name, folder in networks.items()}
    times_s: dict[tuple[str, str], list[float]] = {(name, mode): [] for name in networks for mode in _MODES}
    for turn in range(_NUM_WARM_UP_TURNS + num_turns):
        report(turn + 1, _NUM_WARM_UP_TURNS + num_turns)
        for (name, mode), times in times_s.items():
            took_s = steps[name].time_s(mode)
            if turn >= _NUM_WARM_UP_TURNS:
                times.append(took_s)
    first = next(iter(networks))
    rows = []
    for name in networks:
        row: Row = {"run": networks[name].name, **json.loads(name)}
        for mode in _MODES:
            times = times_s[name, mode]
            ratios = [a / b for a, b in zip(times, times_s[first, mode], strict=True)]
            row[f"{mode}_images_per_s"] = round(BATCH_SIZE / min(times), 1)
            row[f"{mode}_time_ratio"] = round(statistics.median(ratios), 4)
        machine = {"batch_size": BATCH_SIZE, "threads": torch.get_num_threads(), "device": device.type}
        rows.append({**row, **machine})
    return rows


def read_run(run_dir: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the network of a run and the options that it was trained with.

    Raises:
        InvalidConfig: its files cannot be read, or the network is a detector.
    """
    try:
        config_json = (run_dir / "model" / "config.json").read_bytes()
        options = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{error.filename} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise InvalidConfig(f"{run_dir / 'config.yaml'} is not the configuration of a run.")
    if is_detector(config_json):
        raise InvalidConfig(f"--speeds times classifiers; {run_dir} has a detector.")
    return config_from_json(config_json, origin=str(run_dir)), options


class _Steps:
    """A network as its run trains it, in memory format and precision, with images to run it on."""

    def __init__(self, run_dir: Path, device: torch.device) -> None:
        config, options = read_run(run_dir)
        is_channels_last = bool(_get(options, "model", "channels_last"))
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        self._device = device
        self._dtype = torch.bfloat16 if str(_get(options, "trainer", "precision")).startswith("bf16") else None
        network = build_model(config)
        if _get(options, "model", "gemm_gradients"):
            network = use_gemm_gradients(network)
        self._network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        image = config.image
        generator = torch.Generator().manual_seed(0)
        images_NCHW = torch.randn(BATCH_SIZE, image.in_chans, image.height_px, image.width_px, generator=generator)
        self._images_NCHW = images_NCHW.to(device, memory_format=layout)
        self._targets_N = (torch.arange(BATCH_SIZE) % len(config.labels)).to(device)

    def time_s(self, mode: str) -> float:
        """Return the seconds of one batch."""
        is_training = mode == "training"
        self._network.train(is_training).zero_grad()
        self._wait()
        started_s = time.perf_counter()
        with torch.set_grad_enabled(is_training):
            loss = nn.functional.cross_entropy(self._forward(), self._targets_N)
        if is_training:
            torch.autograd.backward(loss)
        self._wait()
        return time.perf_counter() - started_s

    def _forward(self) -> Tensor:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            logits_NK: Tensor = self._network(self._images_NCHW)
        return logits_NK.float()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def network_folders(
    runs: Sequence[SweepRun], out_dir: Path, recorded: Collection[str]
) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of one run of each network, by the columns of its point without the seeds, as JSON.

    Args:
        runs: All runs of the sweep.
        out_dir: Holds their folders.
        recorded: Names of runs that have no folder, because another machine has finished them.

    Returns:
        Their folders, in the order in which the sweep has the networks, and the networks of which no run has a folder.
    """
    folders: dict[str, Path | None] = {}
    for run in runs:
        columns = column_names(list(run.point))
        name = json.dumps({columns[key]: plain(each) for key, each in run.point.items() if columns[key] not in SEEDS})
        folders[name] = folders.get(name) or (None if run.name in recorded else out_dir / run.name)
    found = {name: folder for name, folder in folders.items() if folder is not None}
    return found, [name for name, folder in folders.items() if folder is None]


def with_baseline(networks: Mapping[str, Path], runs: Sequence[SweepRun], run_dir: Path) -> dict[str, Path]:
    """Put the network of a run of another sweep first, so that the ratios are to that.

    Args:
        networks: From `network_folders`.
        runs: All runs of the sweep, whose columns the other run gets with its own values.
        run_dir: The other run.
    """
    _, options = read_run(run_dir)
    columns = column_names(list(runs[0].point))
    point = {column: _get(options, *key.split(".")) for key, column in columns.items() if column not in SEEDS}
    name = json.dumps({column: "" if value is None else plain(value) for column, value in point.items()})
    return {name: run_dir, **{each: folder for each, folder in networks.items() if each != name}}


def _get(options: Any, *keys: str) -> Any:
    for key in keys:
        options = options.get(key) if isinstance(options, dict) else None
    return options
