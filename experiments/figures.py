"""Draw the figures of the README from committed data: `python -m experiments.figures [--out DIR]`.

- `bubbles.png`: accuracy against parameters, the area of a bubble its multiply-adds, for ResNets on ImageNet. The
  accuracies are the published ones of table 3; parameters and multiply-adds are counted by this library.
- `gates.png`: learned gates of the photos release, from `results/photos34_gates.csv` of `python -m experiments.gates`;
  `gates_v.png`: those of a run of block V, from `results/v_gates.csv`.
- `latency.png`: latency against load, from `results/service.json`, which is what
  `python -m experiments.bench.service --results` writes: parts with rows of `server`, `precision`, `clients`, `per_s`,
  `p50_ms` and `p99_ms`.
- `accuracy_BLOCK.png`: each seed of a block of the study, and the means, from `results/BLOCK.csv`; block R with V.
- `kernel_size_j.png`: accuracy against the kernel size of ECA, from `results/j.csv` and `results/v.csv`.

A figure without its data is left out, with a line that names the file.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eca_hub.atomic import write_atomic
from eca_hub.models.complexity import count_complexity
from eca_hub.models.config import ModelConfig
from eca_hub.models.paper import published_rows
from eca_hub.report.page import png
from eca_hub.report.plots import accuracy, gates, kernel_sizes
from eca_hub.report.study import Plan, read_study
from eca_hub.sweep.results import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
_METHODS = {
    "none": ("ResNet", "#8c8c8c"),
    "se": ("SENet", "#3b6fb6"),
    "cbam": ("CBAM", "#e9a23b"),
    "eca": ("ECA-Net", "#d1495b"),
}
_DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def bubbles() -> "Figure":
    """Published accuracy against counted parameters; the area is the counted multiply-adds (the paper's figure 1)."""
    figure, axes = _axes("parameters (millions)", "published top-1 on ImageNet (%)")
    legend: set[str] = set()
    for row in published_rows("3"):
        if row.architecture not in _DEPTHS or row.attention not in _METHODS or row.top1 is None:
            continue
        name, color = _METHODS[row.attention]
        complexity = count_complexity(ModelConfig(row.architecture, row.attention, row.attention_args))
        x = complexity.num_parameters / 1e6
        label = name if name not in legend else None
        legend.add(name)
        axes.scatter(x, row.top1, s=50 * complexity.multiply_adds / 1e9, color=color, alpha=0.5, label=label)
        if row.attention == "eca":
            axes.annotate(row.architecture.removeprefix("resnet"), (x, row.top1), ha="center", va="center", fontsize=8)
    axes.margins(0.12)
    for handle in axes.legend(frameon=False, loc="lower right").legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    axes.set_title("area: multiply-adds; numbers: depth", loc="left", fontsize=10)
    return figure


def learned_gates(file: Path) -> "Figure":
    """Gates of each channel, a line a class."""
    return gates(read_table(file))


def latency(file: Path) -> "Figure":
    """Median and 99th percentile of the latency against the images a second, a line for each server.

    Left out, so that the lines can be told apart: ours with `--compile`, and other servers with our engine in fp32.
    """
    figure, axes = _axes("images a second", "latency (ms)")
    servers: dict[str, list[dict[str, Any]]] = {}
    for part in json.loads(file.read_text()).values():
        for row in part.get("rows", []):
            form, precision = row["server"].rpartition(", ")[2], row["precision"]
            is_shown = precision != "none" and form != "--compile" and (form, precision) != ("our engine", "fp32")
            # Where bf16 is emulated, a server may give no response in a window.
            if is_shown and row["clients"] and row["per_s"]:
                servers.setdefault(f"{row['server']}, {precision}", []).append(row)
    for position, (name, rows) in enumerate(servers.items()):
        color = f"C{position % 10}"
        rows.sort(key=lambda row: row["clients"])
        per_s = [row["per_s"] for row in rows]
        axes.plot(per_s, [row["p50_ms"] for row in rows], "o-", ms=4, color=color, label=name)
        axes.plot(per_s, [row["p99_ms"] for row in rows], ":", color=color)
        if name.startswith("ours"):
            for row in rows:
                point = (row["per_s"], row["p50_ms"])
                axes.annotate(str(row["clients"]), point, fontsize=7, xytext=(3, -9), textcoords="offset points")
    axes.set_yscale("log")
    axes.set_title("lines: median, dotted: 99th percentile; numbers: clients", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def block_accuracy(*files: Path) -> "Figure":
    """Accuracy of each seed and the mean of each method, with its confidence interval."""
    [block] = read_study(files, Plan("test_top1", ())).blocks
    return accuracy(block, "test_top1")


def block_kernel_sizes(*files: Path) -> "Figure":
    """Accuracy against the kernel size, with the other methods of the blocks as lines (the paper's figure 4)."""
    [block] = read_study(files, Plan("test_top1", ())).blocks
    return kernel_sizes(block, "test_top1")


FROM_FILES: dict[str, tuple[Callable[..., "Figure"], tuple[Path, ...]]] = {
    "gates": (learned_gates, (RESULTS / "photos34_gates.csv",)),
    "gates_v": (learned_gates, (RESULTS / "v_gates.csv",)),
    "latency": (latency, (RESULTS / "service.json",)),
    "accuracy_f": (block_accuracy, (RESULTS / "f.csv",)),
    "accuracy_v": (block_accuracy, (RESULTS / "v.csv",)),
    "accuracy_q": (block_accuracy, (RESULTS / "q.csv",)),
    "accuracy_r": (block_accuracy, (RESULTS / "v.csv", RESULTS / "r.csv")),
    "kernel_size_j": (block_kernel_sizes, (RESULTS / "v.csv", RESULTS / "j.csv")),
}
"""Name of a figure to the function that draws it and its data."""


def _axes(x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "figures", help="Folder of the figures.")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "bubbles.png", png(bubbles()))
    for name, (draw, files) in FROM_FILES.items():
        if missing := [file for file in files if not file.is_file()]:
            print(f"{name}.png is left out: there is no {missing[0]}.")
        else:
            write_atomic(out / f"{name}.png", png(draw(*files)))


if __name__ == "__main__":
    main()
