"""Results of a run of a detector: the best weights, tested, as a package in model/; result.json; detections.json."""

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer

from eca_hub import __version__
from eca_hub.atomic import write_atomic
from eca_hub.hub.card import CardFacts, Result
from eca_hub.hub.pretrained import save_detector
from eca_hub.models.detectors import build_detector
from eca_hub.train.callbacks.checkpointing import ResumableCheckpoint
from eca_hub.train.callbacks.epoch_log import format_s
from eca_hub.train.checkpoint.store import CheckpointStore
from eca_hub.train.data.detection import DetectionDataModule
from eca_hub.train.data.detection_dataset import load_pixels
from eca_hub.train.detection import DetectionModule
from eca_hub.train.detection_metrics import FIGURES
from eca_hub.train.detection_plots import draw_contact_sheet, draw_curves, draw_precision_recall
from eca_hub.train.environment import device_name, peak_memory_mib
from eca_hub.train.errors import TrainingStopped

_NUM_SHOWN = 12
_SAME_SPLIT = "The epoch was chosen on the images that it is tested on, because one split serves for both."


def finalize_run(
    trainer: Trainer,
    module: DetectionModule,
    data: DetectionDataModule,
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
        checkpoint: Knows which weights are the best.

    Raises:
        TrainingStopped: there was no validation.
    """
    if checkpoint.best is None:
        raise TrainingStopped("There was no validation, so there are no best weights.", hint="Train longer.")
    fit_s = checkpoint.fit_s
    memory_mib = peak_memory_mib(trainer.strategy.root_device)
    best = store.load_best(checkpoint.best)
    module.model.load_state_dict(best)
    module.ema = None
    trainer.test(module, datamodule=data, verbose=False)
    precision = module.metrics_for("test")
    found, predictions = precision.compute(), precision.gather()
    if not trainer.is_global_zero:
        return
    result = {
        **{f"test_{name}": round(float(value), 6) for name, value in found.items()},
        **{f"val_{name}": round(value, 6) for name, value in checkpoint.best_metrics.items()},
        "best_epoch": checkpoint.best_epoch,
        "num_test_images": len(predictions),
        "epochs": int(trainer.current_epoch),
        "steps": int(trainer.global_step),
        "fit_s": round(fit_s, 3),
        "peak_memory_mib": memory_mib and round(memory_mib, 1),
    }
    results = [each for per_image in predictions.values() for each in per_image]
    write_atomic(run_dir / "detections.json", json.dumps(results).encode())
    _write_classes(module, data, run_dir / "classes.csv")
    draw_precision_recall(precision.evaluations, run_dir / "precision_recall.png")
    _draw_detections(data, predictions, run_dir / "detections.png")
    if (run_dir / "metrics.csv").is_file():
        draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    write_atomic(run_dir / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    network = build_detector(module.config)
    network.load_state_dict(best)
    save_detector(network, run_dir / "model", facts=_card_facts(trainer, module, data, result))
    remark = _SAME_SPLIT if data.has_single_eval_split else ""
    print(
        f"test {_figures(result, 'test_')} on {len(predictions)} images\n"
        f"best validation {_figures(result, 'val_')} in epoch {result['best_epoch']} of {result['epochs']}\n"
        f"{result['steps']} steps in {format_s(fit_s)}"
        + (f", peak memory {memory_mib:.0f} MiB\n" if memory_mib else "\n")
        + (f"{remark}\n" if remark else "")
        + f"run: {run_dir}   package: {run_dir / 'model'}\n"
        f"Next: eca-hub push {run_dir} OWNER/NAME",
        flush=True,
    )


def print_metrics(trainer: Trainer, module: DetectionModule, split: str) -> None:
    """Print the average precision of a split."""
    metrics = module.metrics_for(split)
    found = {f"{split}_{name}": float(value) for name, value in metrics.compute().items()}
    num_images = len(metrics.gather())
    if trainer.is_global_zero:
        print(f"{_figures(found, f'{split}_')}  on {num_images} images", flush=True)


def write_predictions(trainer: Trainer, module: DetectionModule, data: DetectionDataModule, table: Path) -> None:
    """Write the detections of the test split as a COCO results file, next to where a classifier writes its table."""
    batches: Any = trainer.predict(module, datamodule=data) or []
    found = [each for batch in batches for each in batch.items()]
    if trainer.world_size > 1:
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, found)
        found = [each for share in gathered for each in share]
    if not trainer.is_global_zero:
        return
    results = [each for _, predictions in found for each in predictions]
    path = table.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(results).encode())
    print(f"{len(results)} detections in {len(found)} images: {path}", flush=True)


def _figures(values: dict[str, Any], prefix: str) -> str:
    boxes = ", ".join(f"{name} {values[prefix + name]:.4f}" for name in FIGURES[:3])
    if f"{prefix}mask_AP" not in values:
        return boxes
    return f"boxes {boxes}; masks " + ", ".join(f"{name} {values[f'{prefix}mask_{name}']:.4f}" for name in FIGURES[:3])


def _write_classes(module: DetectionModule, data: DetectionDataModule, table: Path) -> None:
    """Write a row per class: annotated objects, AP and AP50 of boxes, and of masks."""
    split = data.split("test")
    evaluations = module.metrics_for("test").evaluations
    # Evaluations have the classes in the order of their category ids.
    place_of = {category_id: place for place, category_id in enumerate(sorted(split.category_ids))}
    counts: dict[int, int] = dict.fromkeys(split.category_ids, 0)
    for each in split.ground_truth["annotations"]:
        counts[each["category_id"]] += not each.get("iscrowd")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    prefixes = ["mask_" if iou_type == "segm" else "" for iou_type in evaluations]
    names = [f"{prefix}{name}" for prefix in prefixes for name in ("AP", "AP50")]
    writer.writerow(["label", "num_objects", *names])
    for label, category_id in zip(split.labels, split.category_ids, strict=True):
        place = place_of[category_id]
        values = [each[place] for found in evaluations.values() for each in (found.class_ap, found.class_ap50)]
        # COCO's -1 stands for a class without an object.
        writer.writerow([label, counts[category_id], *(f"{value:.4f}" if value >= 0 else "" for value in values)])
    write_atomic(table, text.getvalue().encode())


def _draw_detections(data: DetectionDataModule, predictions: dict[Any, list[dict[str, Any]]], image: Path) -> None:
    split = data.split("test")
    samples: list[tuple[Any, Any, Any]] = []
    for each in split.images:
        if len(samples) == _NUM_SHOWN:
            break
        if each.image_id in predictions:
            pixels_HW3 = load_pixels(each).permute(1, 2, 0).numpy()
            samples.append((pixels_HW3, each.boxes.tolist(), predictions[each.image_id]))
    label_of = dict(zip(split.category_ids, split.labels, strict=True))
    draw_contact_sheet(samples, label_of, image)


def _card_facts(
    trainer: Trainer, module: DetectionModule, data: DetectionDataModule, result: dict[str, Any]
) -> CardFacts:
    optim = module.optim_config
    kinds = [("", "boxes"), ("mask_", "masks")] if module.config.has_masks else [("", "boxes")]
    num_images = result["num_test_images"]
    values = {f"{name} of {kind}": result[f"test_{prefix}{name}"] for prefix, kind in kinds for name in FIGURES[:6]}
    # COCO's -1 stands for a size that no object has.
    results = tuple(Result(data.title, "test", name, value, num_images) for name, value in values.items() if value >= 0)
    return CardFacts(
        summary=f"Finds the {len(data.labels)} kinds of objects of {data.title}.",
        results=results,
        recipe={
            "data": f"{data.title}, {data.num_images('train')} training images",
            "optimizer": f"{optim.name}, weight decay {optim.weight_decay:g}",
            "learning rate": f"{optim.lr:g}, {optim.warmup_epochs:g} epochs of warm-up",
            "epochs": f"{result['epochs']}, batch size {data.batch_size * trainer.world_size}; the epoch with the best "
            "validation AP was kept",
            "time": f"{result['fit_s']:.0f} s",
        },
        base_model=module.base_model,
        measured_on=(
            f"{datetime.date.today():%Y-%m-%d} on {trainer.num_devices} x {device_name(trainer.strategy.root_device)}, "
            f"eca-hub {__version__}, torch {torch.__version__}, lightning {lightning.__version__}"
        ),
        limits=f"Only the classes of {data.title} are found."
        + (f" {_SAME_SPLIT}" if data.has_single_eval_split else ""),
    )
