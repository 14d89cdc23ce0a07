"""What `validate`, `test` and `predict` leave: a line of numbers, or a table of answers."""

import csv
from pathlib import Path

from lightning.pytorch import Trainer

from eca_hub.train.data.base import ImageData
from eca_hub.train.module import ImageClassifier
from eca_hub.train.say import say


def tell_measured(trainer: Trainer, module: ImageClassifier, split: str) -> None:
    """Print the numbers of a split."""
    found = module.totals_of(split).compute()
    num_images = int(module.totals_of(split).whole_confusion().sum())
    if trainer.is_global_zero:
        numbers = "  ".join(f"{split}_{name} {float(value):.4f}" for name, value in found.items())
        say(f"{numbers}  on {num_images} images")


def write_predictions(trainer: Trainer, module: ImageClassifier, data: ImageData, table: Path) -> None:
    """Write a row a picture: file, true class, answer, and its probability."""
    source = data.source("test")
    answers = trainer.predict(module, datamodule=data) or []
    table.parent.mkdir(parents=True, exist_ok=True)
    num_right = num_images = 0
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "answer", "score"])
        for index_N, score_NK in answers:
            best_N = score_NK.argmax(1)
            for index, best, score_K in zip(index_N.tolist(), best_N.tolist(), score_NK, strict=True):
                target = int(source.targets[index])
                num_right, num_images = num_right + (target == best), num_images + 1
                row = [source.name(index), data.labels[target], data.labels[best], f"{float(score_K[best]):.6f}"]
                writer.writerow(row)
    say(f"{num_right} of {num_images} right; answers: {table}")
