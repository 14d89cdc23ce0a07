"""The same network trained by other loops, written as in their own guides, each in a process of its own.

    python -m experiments.bench.trainers limit|timm|torchvision|ours TASK.json

`limit` is forward, backward and step on tensors in memory. `timm` is the loop of timm's train.py, which its wheel
does not include, around timm's own dataset, loader, optimizer and meters. `torchvision` is the loop of the official
ECANet main.py: ImageFolder, ToTensor, Normalize on each image. With `trains` false, the loader runs alone: only then
`ours` is run here too; else ours is `eca-hub fit` itself, timed by `experiments.bench.step_timer`.

Prints the seconds of every epoch: when it began, and when each batch was done.

Shapes: N images, H height, W width, K classes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eca_hub
from eca_hub.allocator import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-4


@dataclass(frozen=True)
class Task:
    """The options of one run, the same for every trainer."""

    folder: str
    """Class folders below train/ and val/."""
    architecture: str
    side_px: int
    batch_size: int
    num_epochs: int
    num_workers: int
    crop: str
    """`random_resized_crop` or `padded`."""
    min_area: float
    trains: bool = True

    def network(self) -> nn.Module:
        """The network, the same for all."""
        torch.manual_seed(0)
        classes = [each for each in Path(self.folder, "train").iterdir() if each.is_dir()]
        return eca_hub.create_model(self.architecture, attention="eca", num_classes=len(classes))


def limit(task: Task) -> list[list[float]]:
    """Tensors in memory, in the layout and with the allocator settings that eca-hub trains with."""
    keep_freed_memory()
    batches = [
        (pixels.contiguous(memory_format=torch.channels_last), target) for pixels, target in _batches_of_ours(task)()
    ]
    model = task.network().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    loss_of = nn.CrossEntropyLoss()

    def step(x_N3HW: Tensor, target_N: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(model(x_N3HW), target_N).backward()
        optimizer.step()

    return timed(lambda: batches, step, task)


def train_like_timm(task: Task) -> list[list[float]]:
    """The loop of timm's train.py with its default number format, on timm's own parts."""
    from timm import utils
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    loader = create_loader(
        create_dataset("", root=task.folder, split="train", is_training=True, batch_size=task.batch_size),
        input_size=(3, task.side_px, task.side_px),
        batch_size=task.batch_size,
        is_training=True,
        scale=(task.min_area, 1.0),
        # Its default; the others do not change colors either.
        color_jitter=None,  # type: ignore[arg-type]
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=task.num_workers,
        persistent_workers=task.num_workers > 0,
        device=torch.device("cpu"),
    )
    model = task.network().train()
    optimizer = create_optimizer_v2(model, "sgd", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM)
    schedule = CosineLRScheduler(optimizer, t_initial=task.num_epochs * len(loader), t_in_epochs=False)
    meter: Any = utils.AverageMeter
    loss_of, losses, batch_time = nn.CrossEntropyLoss(), meter(), meter()
    num_updates, end_s = 0, time.time()

    def step(x_N3HW: Tensor, target_N: Tensor) -> None:
        nonlocal num_updates, end_s
        loss = loss_of(model(x_N3HW), target_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        num_updates += 1
        batch_time.update(time.time() - end_s)
        if num_updates % 50 == 0:
            losses.update(loss.item(), x_N3HW.size(0))
        schedule.step_update(num_updates)
        end_s = time.time()

    return timed(lambda: loader, step, task)


def train_like_ecanet(task: Task) -> list[list[float]]:
    """The loop of the official main.py, with top-1 and top-5 of every batch."""
    from torchvision import datasets, transforms

    cut = (
        transforms.RandomResizedCrop(task.side_px, scale=(task.min_area, 1.0))
        if task.crop == "random_resized_crop"
        else transforms.RandomCrop(task.side_px, padding=task.side_px // 8)
    )
    steps = [cut, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(f"{task.folder}/train", transforms.Compose(steps)),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=task.num_workers,
    )
    model = task.network().train()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    loss_of = nn.CrossEntropyLoss()
    sums = {"loss": 0.0, "top1": 0.0, "top5": 0.0}

    def step(x_N3HW: Tensor, target_N: Tensor) -> None:
        logits_NK = model(x_N3HW)
        loss = loss_of(logits_NK, target_N)
        best_N5 = logits_NK.topk(min(5, logits_NK.shape[1]), 1, sorted=True).indices
        is_right_N5 = best_N5 == target_N[:, None]
        sums["loss"] += loss.item()
        sums["top1"] += is_right_N5[:, :1].float().sum().item()
        sums["top5"] += is_right_N5.float().sum().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(lambda: loader, step, task)


def load_ours(task: Task) -> list[list[float]]:
    """The loader of `eca-hub fit` alone, with the normalization of its step and its allocator settings."""
    assert not task.trains
    keep_freed_memory()
    return timed(_batches_of_ours(task), lambda *batch: None, task)


TRAINERS: dict[str, Callable[[Task], list[list[float]]]] = {
    "limit": limit,
    "timm": train_like_timm,
    "torchvision": train_like_ecanet,
    "ours": load_ours,
}


def timed(
    batches: Callable[[], Iterable[Any]], step: Callable[[Tensor, Tensor], None], task: Task
) -> list[list[float]]:
    """Run the epochs; return when each began and when each of its batches was done."""
    epochs = []
    for _ in range(task.num_epochs):
        seconds = [time.monotonic()]
        for x_N3HW, target_N in batches():
            # A last batch that is not full would count as a full one.
            if len(target_N) == task.batch_size:
                if task.trains:
                    step(x_N3HW, target_N)
                seconds.append(time.monotonic())
        epochs.append(seconds)
    return epochs


def _batches_of_ours(task: Task) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    from eca_hub.images.transform import EvalTransform
    from eca_hub.models.config import ImageConfig
    from eca_hub.train.data import AugmentConfig, ImageFolderData

    image = ImageConfig(task.side_px, task.side_px, mean=MEAN, std=STD, interpolation="bilinear")
    augment = AugmentConfig(crop=task.crop, scale_min=task.min_area)  # type: ignore[arg-type]
    loader = ImageFolderData(
        task.folder, image=image, augment=augment, batch_size=task.batch_size, num_workers=task.num_workers
    ).train_dataloader()
    normalize = EvalTransform(image).normalize
    return lambda: ((normalize(batch.pixels), batch.targets) for batch in loader)


def main(argv: list[str]) -> None:
    """Run one trainer."""
    name, path = argv
    task = Task(**json.loads(Path(path).read_text()))
    print(json.dumps(TRAINERS[name](task)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
