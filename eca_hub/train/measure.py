"""What `validate`, `test` and `predict` leave: a line of numbers, or a table of answers."""

import csv
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.module import ImageClassifier
from eca_hub.train.say import say


def tell_measured(trainer: Trainer, module: ImageClassifier, split: str) -> None:
    """Print the numbers of a split."""
    found = module.metrics_for(split).compute()
    num_images = int(module.metrics_for(split).whole_confusion().sum())
    if trainer.is_global_zero:
        numbers = "  ".join(f"{split}_{name} {float(value):.4f}" for name, value in found.items())
        say(f"{numbers}  on {num_images} images")


def write_predictions(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, table: Path) -> None:
    """Write a row a picture, in the order of the split: file, true class, answer, and its probability."""
    source = data.source("test")
    answers = [
        answer
        for index_N, score_NK in trainer.predict(module, datamodule=data) or []
        for answer in zip(index_N.tolist(), score_NK.argmax(1).tolist(), score_NK.amax(1).tolist(), strict=True)
    ]
    if trainer.world_size > 1:
        shares: list[list[tuple[int, int, float]]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(shares, answers)
        answers = [answer for share in shares for answer in share]
    if not trainer.is_global_zero:
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    num_right = 0
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "answer", "score"])
        for index, best, score in sorted(answers):
            target = int(source.targets[index])
            num_right += target == best
            writer.writerow([source.name(index), data.labels[target], data.labels[best], f"{score:.6f}"])
    say(f"{num_right} of {len(answers)} right; answers: {table}")
