"""What a run leaves: the best weights, measured, as a package in model/, and the numbers in result.json."""

import datetime
import json
import os
import platform
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from eca_hub import __version__
from eca_hub.hub.card import CardFacts, Result
from eca_hub.hub.folder import save_pretrained
from eca_hub.train.data import ImageData
from eca_hub.train.module import ImageClassifier


def finish_run(
    trainer: Trainer, module: ImageClassifier, data: ImageData, run_dir: Path, best: ModelCheckpoint, *, fit_s: float
) -> None:
    """Measure the best weights on the test split, write them as a package, and say what to type next.

    Args:
        trainer: Which trained.
        module: What it trained.
        data: What it trained on.
        run_dir: The run folder.
        best: Which knows the best checkpoint.
        fit_s: How long training took, in seconds.
    """
    [measured] = trainer.test(module, datamodule=data, ckpt_path=best.best_model_path, verbose=False)
    if not trainer.is_global_zero:
        return
    num_train, num_test = data.num_images("train"), data.num_images("test")
    epochs = int(trainer.current_epoch)
    # The metric is a float32; the share of right answers that it stands for is exact.
    test_top1 = round(measured["test_top1"] * num_test) / num_test
    result = {
        "test_top1": test_top1,
        "test_loss": measured["test_loss"],
        "val_top1": float(best.best_model_score or 0.0),
        "num_test_images": num_test,
        "epochs": epochs,
        "fit_s": round(fit_s, 3),
        "images_per_s": round(num_train * epochs / fit_s, 1),
    }
    optim = module.optim_config
    facts = CardFacts(
        summary=f"Names the {len(data.labels)} classes of {data.title}.",
        results=(Result(data.title, "test", "accuracy", test_top1, num_test),),
        recipe={
            "data": f"{data.title}, {num_train} training images",
            "optimizer": f"{optim.name}, weight decay {optim.weight_decay:g}",
            "learning rate": f"{optim.lr:g}, {optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up",
            "epochs": f"{epochs}, batch size {data.batch_size}; the epoch with the best validation accuracy was kept",
            "time": f"{fit_s:.0f} s",
        },
        measured_on=(
            f"{datetime.date.today():%Y-%m-%d} on {trainer.num_devices} x {_device(trainer)}, eca-hub {__version__}, "
            f"torch {torch.__version__}, lightning {lightning.__version__}"
        ),
        limits=f"Knows nothing but the classes of {data.title}: every picture gets one of them, whatever it shows.",
    )
    save_pretrained(module.model, module.config, run_dir / "model", facts=facts)
    (run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"test top-1 {test_top1:.4f} on {num_test} images; best validation top-1 {result['val_top1']:.4f}; "
        f"{epochs} epochs in {fit_s:.1f} s, {result['images_per_s']:.0f} images/s\n"
        f"run: {run_dir}   package: {run_dir / 'model'}\n"
        f"Next: eca-hub push {run_dir} OWNER/NAME"
    )


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({os.cpu_count()} cores, {platform.machine()})"
