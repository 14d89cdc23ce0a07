"""What a run leaves: the best weights, measured, as a package in model/, and the numbers in result.json.

Knows nothing of training.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer

from eca_hub import __version__
from eca_hub.hub.card import CardFacts, Result
from eca_hub.hub.pretrained import save_pretrained
from eca_hub.models.build import build_model
from eca_hub.train.callbacks.checkpointing import Keeper
from eca_hub.train.callbacks.epoch_log import format_s
from eca_hub.train.checkpoint.store import CheckpointFolder
from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.distributed.fsdp import load_whole
from eca_hub.train.environment import describe_environment, device_name, peak_memory_mib
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.module import ImageClassifier
from eca_hub.train.plots import draw_confusion, draw_curves, write_classes
from eca_hub.train.say import say

_FLATTERED = "The epoch was chosen on the pictures that it is measured on, for there is one split for both."


def finish_run(
    trainer: Trainer,
    module: ImageClassifier,
    data: ImageDataModule,
    run_dir: Path,
    folder: CheckpointFolder,
    keeper: Keeper,
) -> None:
    """Measure the best weights on the test split, write them as a package, and say what to type next.

    Args:
        trainer: Which trained.
        module: What it trained.
        data: What it trained on.
        run_dir: The run folder.
        folder: The checkpoints, with the best weights among them.
        keeper: Which knows the best.

    Raises:
        TrainingStopped: no epoch ended with a loss that is a number.
    """
    if keeper.best is None:
        raise TrainingStopped("No epoch was validated, so no weights are the best.", hint="Train longer.")
    fit_s = keeper.fit_s
    memory_mib = peak_memory_mib(trainer.strategy.root_device)
    best = folder.load_best(keeper.best)
    load_whole(module.model, best)
    module.average = None
    [measured] = trainer.test(module, datamodule=data, verbose=False)
    confusion_KK = module.metrics_for("test").whole_confusion().cpu()
    if not trainer.is_global_zero:
        return
    num_train, num_test = data.num_images("train"), int(confusion_KK.sum())
    epochs, steps = int(trainer.current_epoch), int(trainer.global_step)
    num_batches = int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)
    batch_size = min(data.batch_size * trainer.world_size, num_train)
    # The metric is a float32; the share of right answers that it stands for is exact.
    result = {
        "test_top1": int(confusion_KK.trace()) / num_test,
        "test_top5": round(float(measured["test_top5"]) * num_test) / num_test,
        "test_macro": round(float(measured["test_macro"]), 6),
        "test_loss": measured["test_loss"],
        "val_top1": round(keeper.best_top1, 6),
        "val_top5": round(keeper.best_top5, 6),
        "best_epoch": keeper.best_epoch,
        "num_test_images": num_test,
        "epochs": epochs,
        "steps": steps,
        "fit_s": round(fit_s, 3),
        "images_per_s": round(num_batches * batch_size / fit_s, 1),
        "peak_memory_mib": round(memory_mib, 1),
    }
    draw_confusion(confusion_KK, data.labels, run_dir / "confusion.png")
    write_classes(confusion_KK, data.labels, run_dir / "classes.csv")
    if (run_dir / "metrics.csv").is_file():
        draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    (run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    facts = _card_facts(trainer, module, data, result)
    # Not the network that was trained: that one may be cut up, or have norms that only training needs.
    network = build_model(module.config)
    network.load_state_dict(best)
    save_pretrained(network, module.config, run_dir / "model", facts=facts)
    _tell(result, run_dir, _FLATTERED if data.has_single_eval_split else "")


def write_environment(trainer: Trainer, run_dir: Path) -> None:
    """Write on what the run is made."""
    if trainer.is_global_zero:
        environment = describe_environment(trainer.num_devices * trainer.num_nodes, trainer.strategy.root_device)
        (run_dir / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")


def _tell(result: dict[str, Any], run_dir: Path, remark: str) -> None:
    say(
        f"test top-1 {result['test_top1']:.4f}, top-5 {result['test_top5']:.4f}, mean of the classes "
        f"{result['test_macro']:.4f} on {result['num_test_images']} images\n"
        f"best validation top-1 {result['val_top1']:.4f}, top-5 {result['val_top5']:.4f} in epoch "
        f"{result['best_epoch']} of {result['epochs']}\n"
        f"{result['steps']} steps in {format_s(result['fit_s'])}, {result['images_per_s']:.0f} images/s, "
        f"peak memory {result['peak_memory_mib']:.0f} MiB\n"
        + (f"{remark}\n" if remark else "")
        + f"run: {run_dir}   package: {run_dir / 'model'}\n"
        f"Next: eca-hub push {run_dir} OWNER/NAME"
    )


def _card_facts(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, result: dict[str, Any]) -> CardFacts:
    optim = module.optim_config
    num_test = int(result["num_test_images"])
    return CardFacts(
        summary=f"Names the {len(data.labels)} classes of {data.title}.",
        results=(Result(data.title, "test", "accuracy", result["test_top1"], num_test),),
        recipe={
            "data": f"{data.title}, {data.num_images('train')} training images",
            "optimizer": f"{optim.name}, weight decay {optim.weight_decay:g}",
            "learning rate": f"{optim.lr:g}, {optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up",
            "epochs": f"{result['epochs']}, batch size {data.batch_size * trainer.world_size}; the epoch with the best "
            "validation accuracy was kept",
            "time": f"{result['fit_s']:.0f} s",
        },
        base_model=module.base_model,
        measured_on=(
            f"{datetime.date.today():%Y-%m-%d} on {trainer.num_devices} x {device_name(trainer.strategy.root_device)}, "
            f"eca-hub {__version__}, torch {torch.__version__}, lightning {lightning.__version__}"
        ),
        limits=f"Knows nothing but the classes of {data.title}: every picture gets one of them, whatever it shows."
        + (f" {_FLATTERED}" if data.has_single_eval_split else ""),
    )
