"""Make a release of this library from a training run: `python -m experiments.make_release NAME RUN --data_root DATA`.

Kernels and matrices are stored in half precision, norms in float32. Where that changes a prediction on the validation
split, small kernels stay in float32 as well; a change of its accuracy is refused. The size of the images is the one of
`sizes_px` in release_cards.yaml with the lowest loss on the validation split. The test split is then classified once,
by the weights of the file, and the card states the result.

Shapes: N images, K classes.
"""

import argparse
import csv
import dataclasses
import datetime
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from eca_hub.allocator import keep_freed_memory
from eca_hub.classifier import Classifier
from eca_hub.errors import InvalidUsage
from eca_hub.hub.card.facts import CardFacts, Result
from eca_hub.hub.package import CARD_FILE
from eca_hub.hub.pretrained import load_pretrained, save_pretrained
from eca_hub.models.config import ModelConfig
from eca_hub.releases import RELEASES, release_folder
from eca_hub.train.data.parquet import ParquetData
from eca_hub.train.data.source import Source
from experiments.program import run_program

_BATCH_SIZE = 32
_LARGE = 2**16
"""Elements of a kernel that makes a file large."""
_Z = 1.96
_CARDS = Path(__file__).parent / "release_cards.yaml"


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the card of a release says beyond the measurements."""

    data: str
    val_fraction: float
    summary: str
    license: str
    limits: str
    sources: str
    """Section about the origin of data and initial weights."""
    command: str
    sizes_px: tuple[int, ...]
    """Sizes of the images among which the validation split chooses."""


def read_texts() -> dict[str, Texts]:
    """Read the texts of all releases."""
    return {name: Texts(**fields) for name, fields in yaml.safe_load(_CARDS.read_text(encoding="utf-8")).items()}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a network predicts for a split."""

    predicted: Tensor
    """Class indices, (N,)."""
    targets: Tensor
    """True ones, (N,)."""
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return float((self.predicted == self.targets).double().mean())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes of the share of their images that are recognized."""
        correct_N = (self.predicted == self.targets).double()
        classes = sorted(set(self.targets.tolist()))
        return float(torch.stack([correct_N[self.targets == k].mean() for k in classes]).mean())


def measure(model: nn.Module, config: ModelConfig, source: Source) -> Measured:
    """Classify a split as `Classifier` does."""
    classifier = Classifier(model, config, model_id="", revision="")
    transform, probabilities = classifier.transform, []
    for start in range(0, len(source.targets), _BATCH_SIZE):
        indices = range(start, min(start + _BATCH_SIZE, len(source.targets)))
        pixels = [transform.resize_and_crop(transform.decode(source.read(index))) for index in indices]
        probabilities.append(classifier.probabilities(torch.stack(pixels)))
    probability_NK, targets_N = torch.cat(probabilities), torch.from_numpy(source.targets).long()
    loss = nn.functional.nll_loss(probability_NK.clamp(min=1e-12).log(), targets_N)
    return Measured(probability_NK.argmax(1), targets_N, float(loss))


def halve(model: nn.Module, min_elements: int = 0) -> None:
    """Round kernels of more elements to half precision; vectors, such as the statistics of norms, stay in float32."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.numel() > min_elements:
            parameter.data = parameter.data.half()


def interval(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `number` images."""
    center = (share + _Z**2 / (2 * number)) / (1 + _Z**2 / number)
    half = _Z * math.sqrt(share * (1 - share) / number + _Z**2 / (4 * number**2)) / (1 + _Z**2 / number)
    return center - half, center + half


def make_release(name: str, run: Path, data_root: str) -> Path:
    """Choose size and precision on the validation split, measure the test split, and write the package."""
    texts, folder = read_texts()[name], release_folder(name)
    assert folder is not None
    model, config = load_pretrained(run)
    data = ParquetData(data_root, val_fraction=texts.val_fraction)
    validated: dict[int, Measured] = {}
    for size in texts.sizes_px:
        validated[size] = measure(model, _with_size(config, size), data.source("val"))
        print(
            f"{size} px: validation loss {validated[size].loss:.4f}, accuracy {validated[size].accuracy:.4f}",
            flush=True,
        )
    chosen = min(validated, key=lambda size: validated[size].loss)
    config = _with_size(config, chosen)
    for min_elements in (0, _LARGE):
        model, _ = load_pretrained(run)
        halve(model, min_elements)
        rounded = measure(model.float(), config, data.source("val"))
        num_changed = int((rounded.predicted != validated[chosen].predicted).sum())
        print(
            f"{chosen} px, half precision of more than {min_elements} elements changes {num_changed} predictions",
            flush=True,
        )
        if not num_changed:
            break
    if rounded.accuracy != validated[chosen].accuracy:
        raise InvalidUsage(f"Half precision changes the validation accuracy by {num_changed} predictions.")
    test = measure(model, config, data.source("test"))
    halve(model, min_elements)
    model.config = config  # type: ignore[assignment]
    facts = _facts(name, texts, run, data, config, test, model, num_changed)
    save_pretrained(model, folder, config=config, facts=facts)
    card = folder / CARD_FILE
    card.write_text(card.read_text() + f"\n## Sources and notices\n\n{texts.sources}\n")
    print(f"test accuracy {test.accuracy:.4f}, balanced {test.balanced_accuracy:.4f}: {folder}")
    return folder


def _dtypes(model: nn.Module) -> str:
    """Name the number formats of the parameters, with the share of each."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    return ", ".join(
        f"{str(dtype).removeprefix('torch.')} {n / counts.total():.0%}" for dtype, n in counts.most_common()
    )


def _with_size(config: ModelConfig, size: int) -> ModelConfig:
    return dataclasses.replace(config, image=dataclasses.replace(config.image, height_px=size, width_px=size))


def _facts(
    name: str,
    texts: Texts,
    run: Path,
    data: ParquetData,
    config: ModelConfig,
    test: Measured,
    model: nn.Module,
    num_changed: int,
) -> CardFacts:
    result = json.loads((run / "result.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        val_top1 = [float(row["val_top1"]) for row in csv.DictReader(file) if row.get("val_top1")]
    num_test = len(test.targets)
    low, high = interval(test.accuracy, num_test)
    return CardFacts(
        title=name,
        summary=texts.summary,
        license=texts.license,
        results=(
            Result(texts.data, "test", "accuracy", test.accuracy, num_test),
            Result(texts.data, "test", "balanced_accuracy", test.balanced_accuracy, num_test),
        ),
        recipe={
            "data": f"{texts.data}, {data.num_images('train')} training images",
            "epochs": f"{result['epochs']}, {result['fit_s'] / 60:.0f} minutes; the epoch with the best validation "
            "accuracy was kept",
            "validation": f"{data.num_images('val')} images, for the epoch, the size of the images and the precision",
            "test": f"{num_test} images, for no choice; 95 % interval of the accuracy {low:.4f} to {high:.4f}",
            "precision of the file": f"{_dtypes(model)}; {num_changed} predictions on the validation images changed",
        },
        curves={"validation accuracy": val_top1},
        measured_on=f"{datetime.date.today():%Y-%m-%d} on {environment['device']}, at {config.image.height_px} px",
        commit=(environment.get("git") or {}).get("commit", ""),
        command=texts.command,
        seed=0,
        limits=texts.limits,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(RELEASES))
    parser.add_argument("run", type=Path, help="Run folder of the configuration of the release.")
    parser.add_argument("--data_root", required=True, help="Folder with the parquet files.")
    args = parser.parse_args(arguments)
    if not (args.run / "result.json").is_file():
        raise InvalidUsage(f"{args.run} is not the folder of a finished run.")
    keep_freed_memory()
    make_release(args.name, args.run, args.data_root)
    return 0


if __name__ == "__main__":
    run_program(main)
