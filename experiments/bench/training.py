"""How fast `eca-hub fit` trains, beside the bare network, timm and the official ECANet script, all in one run.

    python -m experiments.bench.training [--photos DIR] [--cifar10 DIR]       everything, one row after the other
    python -m experiments.bench.training --only cifar10 --rounds 1            one row: a minute or two on two cores
    python -m experiments.bench.training --report                             print all that was measured so far

DIR holds train.parquet in the Hub's image layout; without one, JPEG images of the same size are synthesized. Every
trainer has a process of its own and gets the same files, network, batch and number of data workers; they run in
turns and the best epoch of each counts. `first` is ours while it still decodes every file, `later` when the decoded
images are in memory; the others always decode. Rows are kept in a file, so that a call may measure a part. Rows:

    photos       ECA-ResNet-18 at 128 px: the step dominates
    cifar10      ECA-ResNet-20 at 32 px: the step dominates, but an image is cheap
    thumbnails   the same photos at 32 px, where decoding dominates
    loader       the loaders alone, photos at 128 px: what a fast accelerator would wait for
    start        from typing the command to the first step, beside importing torch, timm and lightning and building
                 the network
    profile      where a step's time goes, on the photos: decoding, augmenting, forward, backward, optimizer, loop
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidConfig, InvalidUsage
from experiments.bench.training_images import write_images
from experiments.program import run_program

_MODULE = "experiments.bench.trainers"
_PEERS = ("timm", "torchvision")
_LIMIT_AIM, _PEER_AIM, _START_AIM = 0.95, 1.2, 1.3
_FLOOR = "import torch, timm, lightning; timm.create_model('resnet18')"


@dataclass(frozen=True)
class Case:
    """One row: a network, images of a size, and what takes the time."""

    name: str
    images: str
    architecture: str
    side_px: int
    batch_size: int
    num_images: int
    crop: str
    dominates: str
    trains: bool = True


CASES = (
    Case("photos", "photos", "resnet18", 128, 32, 256, "random_resized_crop", "the step"),
    Case("cifar10", "cifar10", "resnet20", 32, 128, 1920, "padded", "the step"),
    Case("thumbnails", "photos", "resnet20", 32, 64, 512, "random_resized_crop", "decoding"),
    Case("loader", "photos", "resnet18", 128, 32, 512, "random_resized_crop", "decoding", trains=False),
)


@dataclass
class Row:
    """What was measured of one case, in images a second."""

    case: str
    dominates: str
    data: str
    when: str
    ours_first: float
    ours_later: float
    limit: float | None
    peers: dict[str, float]

    def aims(self) -> list[str]:
        """Ratios with what they should be at least."""
        if self.dominates == "the step":
            assert self.limit is not None
            return [f"{self.ours_later / self.limit:.2f} of the limit (aim {_LIMIT_AIM})"]
        return [
            f"{self.ours_later / speed:.2f} times {name} (aim {_PEER_AIM}; first epoch {self.ours_first / speed:.2f})"
            for name, speed in self.peers.items()
        ]


def main(argv: list[str]) -> int:
    """Measure and print."""
    names = [case.name for case in CASES] + ["start", "profile"]
    parser = CommandParser("bench training", "Measure training beside its limit and beside other trainers.")
    parser.add_argument("--photos", help="Folder with train.parquet of photos; synthetic without one.")
    parser.add_argument("--cifar10", help="Folder with train.parquet of CIFAR-10; synthetic without one.")
    parser.add_argument("--only", default=",".join(names), help="Rows, separated by commas, as in photos,start.")
    parser.add_argument("--report", action="store_true", help="Measure nothing; print what was measured before.")
    parser.add_argument("--num_workers", type=int, default=0, help="Data workers of every trainer.")
    parser.add_argument("--rounds", type=int, default=2, help="Turns of each trainer; the best counts.")
    parser.add_argument("--quick", action="store_true", help="One round on few images: does it run?")
    parser.add_argument("--results", default="runs/bench_training.json", help="Where rows are kept between calls.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(names):
        raise InvalidUsage(f"There is no row {sorted(unknown)[0]!r}.", hint=f"Rows: {', '.join(names)}.")
    results = Path(args.results)
    saved_results: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if not args.report:
        results.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name in wanted:
                saved_results[name] = measure_row(name, Path(folder), args)
                results.write_text(json.dumps(saved_results, indent=1))
    if args.json:
        print(json.dumps(saved_results))
    else:
        print_report(saved_results)
    return 0


def measure_row(name: str, work: Path, args: Any) -> dict[str, Any]:
    """Measure one row."""
    rounds = 1 if args.quick else args.rounds
    if name == "start":
        return measure_start(work, rounds)
    [case] = [each for each in CASES if each.name == ("photos" if name == "profile" else name)]
    if args.quick:
        case = replace(case, num_images=3 * case.batch_size)
    data = getattr(args, case.images)
    images = work / f"{case.images}_{case.num_images}"
    if not images.exists():
        write_images(images, case.images, case.num_images, case.batch_size, data)
    if name == "profile":
        return measure_profile(case, images, args.num_workers)
    return asdict(measure(case, images, rounds, args.num_workers, Path(data).name if data else "synthetic"))


def measure(case: Case, images: Path, rounds: int, num_workers: int, data: str) -> Row:
    """Run the trainers in turns."""
    task = task_of(case, images, num_workers)
    best: dict[str, float] = {}
    for turn in range(rounds):
        for name in ("ours", *_PEERS, *(["limit"] if case.trains else [])):
            report_progress(f"{case.name}: {name}, turn {turn + 1} of {rounds}")
            task["num_epochs"] = 3 if name == "ours" else 2
            is_fit = name == "ours" and case.trains
            epochs = run_fit(images, task)["epochs"] if is_fit else run_peer(name, images, task)
            # The first step of a process pays for what is made once; so the first epoch counts from its second batch.
            first = case.batch_size * (len(epochs[0]) - 2) / (epochs[0][-1] - epochs[0][1])
            later = max(case.batch_size * (len(each) - 1) / (each[-1] - each[0]) for each in epochs[1:])
            for key, speed in ((name, later), (f"{name}, first", first)):
                best[key] = max(best.get(key, 0.0), speed)
    report_progress("")
    peers = {name: best[name] for name in _PEERS}
    when = time.strftime("%Y-%m-%d %H:%M")
    return Row(case.name, case.dominates, data, when, best["ours, first"], best["ours"], best.get("limit"), peers)


def measure_profile(case: Case, images: Path, num_workers: int) -> dict[str, float]:
    """Milliseconds of each phase of a step of `eca-hub fit`.

    The first epoch decodes, the last finds decoded images in memory: the difference is decoding. What the last waits
    for data is augmenting. With data workers both are what the step waits for them, not what they cost.
    """
    report_progress("profile: ours")
    task = task_of(case, images, num_workers) | {"num_epochs": 3}
    phases: list[dict[str, float]] = run_fit(images, task)["phases"]
    report_progress("")
    per_step_ms = 1000 * case.batch_size / case.num_images
    first, last = ({name: s * per_step_ms for name, s in phases[epoch].items()} for epoch in (0, -1))
    return {"decode": first["data"] - last["data"], "augment": last.pop("data"), **last}


def task_of(case: Case, images: Path, num_workers: int) -> dict[str, Any]:
    """The options of a run."""
    return {
        "folder": str(images),
        "architecture": case.architecture,
        "side_px": case.side_px,
        "batch_size": case.batch_size,
        "num_workers": num_workers,
        "crop": case.crop,
        "min_area": 0.08,
        "trains": case.trains,
    }


def run_peer(name: str, images: Path, task: dict[str, Any]) -> list[list[float]]:
    """Run another trainer, or our loader alone."""
    file = images.with_suffix(".json")
    file.write_text(json.dumps(task))
    output = run([sys.executable, "-m", _MODULE, name, str(file)])
    epochs: list[list[float]] = json.loads(output.splitlines()[-1])
    return epochs


def run_fit(images: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Run `eca-hub fit` as a user does, with the step timer; return what that wrote."""
    options = {
        "data": "ImageFolderData",
        "data.root": str(images),
        "data.batch_size": task["batch_size"],
        "data.num_workers": task["num_workers"],
        "data.image.height_px": task["side_px"],
        "data.image.width_px": task["side_px"],
        "data.image.interpolation": "bilinear",
        "data.augment.crop": task["crop"],
        "data.augment.scale_min": task["min_area"],
        "model.architecture": task["architecture"],
        "model.channels_last": "true",
        "trainer.max_epochs": task["num_epochs"],
    }
    return timed_fit(images.parent, options)


def timed_fit(work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run `eca-hub fit` with options; return what the step timer wrote."""
    seconds = work / "seconds.json"
    options_argv = [argument for name, value in options.items() for argument in (f"--{name}", str(value))]
    run(
        [
            *(sys.executable, "-m", "eca_hub", "fit", *options_argv),
            *("--run_dir", str(work / "run"), "--overwrite", "--trainer.accelerator", "cpu"),
            *("--trainer.callbacks", "experiments.bench.step_timer.StepTimer"),
            *("--trainer.callbacks.init_args.file", str(seconds)),
        ],
        ECA_TRAIN_IMPORTS="experiments.bench.step_timer",
    )
    timings: dict[str, Any] = json.loads(seconds.read_text())
    return timings


def measure_start(work: Path, rounds: int) -> dict[str, float]:
    """Seconds until the first batch reaches the network, beside the imports that any training with Lightning needs."""
    options = {
        "data": "SyntheticData",
        "data.num_train": 16,
        "data.num_eval": 8,
        "data.batch_size": 8,
        "data.image.height_px": 32,
        "data.image.width_px": 32,
        "model.architecture": "resnet18",
        "trainer.max_epochs": 1,
    }
    best = {"floor_s": float("inf"), "first_step_s": float("inf")}
    # The turn before the first fills the caches of the file system.
    for turn in range(rounds + 1):
        report_progress(f"start: turn {turn} of {rounds}")
        began_s = time.monotonic()
        run([sys.executable, "-c", _FLOOR])
        floor_s, began_s = time.monotonic() - began_s, time.monotonic()
        first_step_s = timed_fit(work, options)["first_batch_s"] - began_s
        if turn:
            best = {
                "floor_s": min(best["floor_s"], floor_s),
                "first_step_s": min(best["first_step_s"], first_step_s),
            }
    report_progress("")
    return best


def run(command: list[str], **environment: str) -> str:
    """Run a command to its end and return what it printed."""
    completed = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if completed.returncode:
        raise InvalidConfig(f"{' '.join(command[1:4])} ended with {completed.returncode}: {completed.stderr[-1500:]}")
    return completed.stdout


def print_report(saved_results: dict[str, Any]) -> None:
    """Print images a second, and each ratio beside its aim."""
    rows = [Row(**saved_results[case.name]) for case in CASES if case.name in saved_results]
    if rows:
        print(f"{'images/s':<12}{'first':>9}{'later':>9}{'limit':>9}{'timm':>9}{'torchvision':>13}   ratios")
    for row in rows:
        limit = f"{row.limit:.1f}" if row.limit else "-"
        peers = f"{row.peers['timm']:>9.1f}{row.peers['torchvision']:>13.1f}"
        ratios = "  ".join(row.aims())
        print(f"{row.case:<12}{row.ours_first:>9.1f}{row.ours_later:>9.1f}{limit:>9}{peers}   {ratios}")
    if start := saved_results.get("start"):
        ratio = start["first_step_s"] / start["floor_s"]
        print(
            f"start: first step after {start['first_step_s']:.2f} s, imports and network {start['floor_s']:.2f} s   "
            f"{ratio:.2f} x (aim at most {_START_AIM})"
        )
    if profile := saved_results.get("profile"):
        total_ms = sum(profile.values())
        parts = "  ".join(f"{name} {ms:.1f} ms ({ms / total_ms:.1%})" for name, ms in profile.items())
        print(f"profile, a step of the first epoch: {parts}")


def report_progress(sentence: str) -> None:
    """Print the progress; on a terminal each line replaces the last one."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{sentence}")
    elif sentence:
        sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    run_program(main)
