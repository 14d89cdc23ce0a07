"""Results of a run: the best weights, tested, as a package in model/; result.json; predictions.csv."""

import csv
import datetime
import json
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer

from eca_hub import __version__
from eca_hub.atomic import write_atomic
from eca_hub.hub.card import CardFacts, Result
from eca_hub.hub.pretrained import save_pretrained
from eca_hub.models.build import build_model
from eca_hub.train.callbacks.checkpointing import ResumableCheckpoint
from eca_hub.train.callbacks.epoch_log import format_s
from eca_hub.train.checkpoint.store import CheckpointStore
from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.data.source import UNLABELED
from eca_hub.train.distributed.fsdp import load_full_weights
from eca_hub.train.environment import describe_environment, device_name, peak_memory_mib
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.module import ImageClassifier
from eca_hub.train.plots import draw_confusion, draw_curves, write_classes

_MAX_CLASSES_IN_RESULT = 100
_SAME_SPLIT = "The epoch was chosen on the images that it is tested on, because one split serves for both."


def finalize_run(
    trainer: Trainer,
    module: ImageClassifier,
    data: ImageDataModule,
    run_dir: Path,
    store: CheckpointStore,
    checkpoint: ResumableCheckpoint,
) -> None:
    """Test the best weights, write them as a package, and print the results and the next command.

    Args:
        trainer: The trainer, after training.
        module: The trained module.
        data: The data it was trained on.
        run_dir: The run folder.
        store: The checkpoints, with the best weights among them.
        checkpoint: The callback that has recorded which weights are the best.

    Raises:
        TrainingStopped: the best weights are to be kept, and no validation had a finite loss.
    """
    fit_s = checkpoint.fit_s
    memory_mib = peak_memory_mib(trainer.strategy.root_device)
    if checkpoint.keep == "last":
        weights = module.best_weights()
        val_top1, val_top5 = checkpoint.last_metrics.get("top1"), checkpoint.last_metrics.get("top5")
    elif checkpoint.best is not None:
        weights = store.load_best(checkpoint.best)
        val_top1, val_top5 = checkpoint.best_metrics["top1"], checkpoint.best_metrics["top5"]
    else:
        raise TrainingStopped("No validation had a finite loss, so there are no best weights.", hint="Train longer.")
    load_full_weights(module.model, weights)
    module.ema = None
    [measured] = trainer.test(module, datamodule=data, verbose=False)
    confusion_KK = module.metrics_for("test").compute_confusion().cpu()
    per_class = {name: values.tolist() for name, values in module.metrics_for("test").compute_per_class().items()}
    if not trainer.is_global_zero:
        return
    num_train, num_test = data.num_images("train"), int(confusion_KK.sum())
    epochs, steps = int(trainer.current_epoch), int(trainer.global_step)
    num_batches = int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)
    batch_size = min(data.batch_size * trainer.world_size, num_train)
    # The metric is a float32; the share of correct predictions, from which it was rounded, is exact.
    result: dict[str, Any] = {
        "test_top1": int(confusion_KK.trace()) / num_test,
        "test_top5": round(float(measured["test_top5"]) * num_test) / num_test,
        "test_macro": round(float(measured["test_macro"]), 6),
        "test_macro_f1": round(float(measured["test_macro_f1"]), 6),
        "test_calibration_error": round(float(measured["test_calibration_error"]), 6),
        "test_loss": measured["test_loss"],
        "val_top1": None if val_top1 is None else round(val_top1, 6),
        "val_top5": None if val_top5 is None else round(val_top5, 6),
        "best_epoch": epochs if checkpoint.keep == "last" else checkpoint.best_epoch,
        "kept": checkpoint.keep,
        "num_test_images": num_test,
        "epochs": epochs,
        "steps": steps,
        "fit_s": round(fit_s, 3),
        "images_per_s": round(num_batches * batch_size / fit_s, 1),
        "peak_memory_mib": memory_mib and round(memory_mib, 1),
    }
    draw_confusion(confusion_KK, data.labels, run_dir / "confusion.png")
    write_classes(confusion_KK, data.labels, run_dir / "classes.csv")
    if (run_dir / "metrics.csv").is_file():
        draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    if len(data.labels) <= _MAX_CLASSES_IN_RESULT:
        result["classes"] = [
            {"label": label} | {name: _rounded(values[index]) for name, values in per_class.items()}
            for index, label in enumerate(data.labels)
        ]
        result["confusion"] = confusion_KK.tolist()
    write_atomic(run_dir / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    facts = _card_facts(trainer, module, data, result)
    # A new network: the trained one may be sharded, or have norms for training only.
    network = build_model(module.config)
    network.load_state_dict(weights)
    save_pretrained(network, run_dir / "model", config=module.config, facts=facts)
    _print_result(result, run_dir, _SAME_SPLIT if data.has_single_eval_split else "")


def _rounded(value: float) -> float | None:
    """Round a metric for JSON, which has no NaN: the recall of a class without images."""
    return None if math.isnan(value) else round(value, 6)


def write_environment(trainer: Trainer, run_dir: Path) -> None:
    """Write environment.json: machine, packages and state of the source."""
    if trainer.is_global_zero:
        environment = describe_environment(trainer.num_devices * trainer.num_nodes, trainer.strategy.root_device)
        write_atomic(run_dir / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())


def print_metrics(trainer: Trainer, module: ImageClassifier, split: str) -> None:
    """Print the metrics of a split."""
    metrics = module.metrics_for(split).compute()
    num_images = module.metrics_for(split).num_images()
    if trainer.is_global_zero:
        numbers = "  ".join(f"{split}_{name} {float(value):.4f}" for name, value in metrics.items())
        print(f"{numbers}  on {num_images} images", flush=True)


def write_predictions(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, table: Path) -> None:
    """Write a row per image of the test split, in its order: file, true class, predicted class, probability."""
    source = data.predict_source()
    predictions = [
        prediction
        for index_N, score_NK in trainer.predict(module, datamodule=data) or []
        for prediction in zip(index_N.tolist(), score_NK.argmax(1).tolist(), score_NK.amax(1).tolist(), strict=True)
    ]
    if trainer.world_size > 1:
        gathered: list[list[tuple[int, int, float]]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(gathered, predictions)
        predictions = [prediction for each in gathered for prediction in each]
    if not trainer.is_global_zero:
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    num_correct = num_labeled = 0
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "answer", "score"])
        for index, best, score in sorted(predictions):
            target = int(source.targets[index])
            num_labeled += target != UNLABELED
            num_correct += target == best
            label = "" if target == UNLABELED else data.labels[target]
            writer.writerow([source.name(index), label, data.labels[best], f"{score:.6f}"])
    skipped = len(source.targets) - len(predictions)
    measured = f"{num_correct} of {num_labeled} correct; " if num_labeled else ""
    left_out = f"{skipped} images were not classified; " if skipped else ""
    print(f"{measured}{left_out}predictions: {table}", flush=True)


def _validation_line(result: dict[str, Any]) -> str:
    if result["val_top1"] is None:
        return ""
    return (
        f"{result['kept']} validation top-1 {result['val_top1']:.4f}, top-5 {result['val_top5']:.4f} in epoch "
        f"{result['best_epoch']} of {result['epochs']}\n"
    )


def _print_result(result: dict[str, Any], run_dir: Path, remark: str) -> None:
    memory_mib = result["peak_memory_mib"]
    print(
        f"test top-1 {result['test_top1']:.4f}, top-5 {result['test_top5']:.4f}, mean over classes "
        f"{result['test_macro']:.4f} on {result['num_test_images']} images\n"
        + _validation_line(result)
        + f"{result['steps']} steps in {format_s(result['fit_s'])}, {result['images_per_s']:.0f} images/s"
        + (f", peak memory {memory_mib:.0f} MiB\n" if memory_mib else "\n")
        + (f"{remark}\n" if remark else "")
        + f"run: {run_dir}   package: {run_dir / 'model'}\n"
        f"Next: eca-hub push {run_dir} OWNER/NAME",
        flush=True,
    )


def _card_facts(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, result: dict[str, Any]) -> CardFacts:
    optim = module.optim_config
    num_test = int(result["num_test_images"])
    return CardFacts(
        summary=f"Classifies images into the {len(data.labels)} classes of {data.title}.",
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
        limits=f"Every image gets one of the classes of {data.title}, whatever it shows."
        + (f" {_SAME_SPLIT}" if data.has_single_eval_split else ""),
    )
