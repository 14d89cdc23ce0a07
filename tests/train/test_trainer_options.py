"""Every option of Lightning's Trainer works, or is refused before training with the reason and what to use instead."""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_only

from eca_hub.errors import InvalidConfig
from eca_hub.train.lightning_cli import RunCLI
from eca_hub.train.trainer_options import (
    UNSUPPORTED,
    UNSUPPORTED_CALLBACKS,
    check_monitors,
    check_plateau,
    check_processes,
    num_full_epochs,
    warmup_remark,
    warn_of_emulation,
)
from tests.train.runs import CONFIG, fit

ONE_EPOCH = CONFIG.replace("max_epochs: 3", "max_epochs: 1")
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
CONSTANT = ("--model.optim.schedule", "constant")
WORKING: dict[str, tuple[str, ...]] = {
    "accelerator": ("cpu",),
    "strategy": ("ddp",),
    "devices": ("1",),
    "num_nodes": ("1",),
    "precision": ("bf16-mixed",),
    "logger": ("CSVLogger", "--trainer.logger.save_dir", "{run}/log"),
    "callbacks": ("EarlyStopping", "--trainer.callbacks.monitor", "val_loss"),
    "fast_dev_run": ("true",),
    "max_epochs": ("-1", "--trainer.max_time", "00:00:00:01", *CONSTANT),
    "min_epochs": ("1",),
    "max_steps": ("3",),
    "min_steps": ("2",),
    "max_time": ("00:00:00:01",),
    "limit_train_batches": ("0.5",),
    "limit_val_batches": ("1",),
    "limit_test_batches": ("1",),
    "limit_predict_batches": ("1",),
    "val_check_interval": ("2",),
    "check_val_every_n_epoch": ("1",),
    "num_sanity_val_steps": ("1",),
    "log_every_n_steps": ("1",),
    "enable_progress_bar": ("false",),
    "accumulate_grad_batches": ("2",),
    "gradient_clip_val": ("1.0",),
    "gradient_clip_algorithm": ("value", "--trainer.gradient_clip_val", "0.1"),
    "deterministic": ("true",),
    "benchmark": ("false",),
    "inference_mode": ("false",),
    "profiler": ("simple",),
    "detect_anomaly": ("true",),
    "plugins": ("null",),
    "sync_batchnorm": ("false",),
    "enable_autolog_hparams": ("false",),
    "model_registry": ("null",),
}
REFUSED: dict[str, tuple[str, ...]] = {
    "default_root_dir": ("elsewhere",),
    "enable_checkpointing": ("true",),
    "enable_model_summary": ("true",),
    "overfit_batches": ("1",),
    "use_distributed_sampler": ("true",),
    "barebones": ("true",),
    "reload_dataloaders_every_n_epochs": ("1",),
}
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no GPU": (
        ("--trainer.accelerator", "gpu"),
        "--trainer.accelerator gpu: torch finds no such device on this machine.",
    ),
    "a strategy that spawns": (("--trainer.strategy", "ddp_spawn"), "--trainer.strategy ddp_spawn is not supported"),
    "a misspelled monitor": (
        ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"),
        "EarlyStopping monitors 'val/loss', which is not logged. Logged: lr, train_loss,",
    ),
    "validation too rarely": (
        ("--trainer.check_val_every_n_epoch", "2"),
        "--trainer.check_val_every_n_epoch 2 never validates in 1 epochs",
    ),
    "validation after more batches than there are": (
        ("--trainer.val_check_interval", "9"),
        "--trainer.val_check_interval 9 is more than the 4 batches of an epoch",
    ),
    "no validation": (("--trainer.limit_val_batches", "0"), "--trainer.limit_val_batches 0 turns off validation"),
    "an accelerator that does not exist": (
        ("--trainer.accelerator", "nope"),
        "The Trainer refuses an option of --trainer: You selected an invalid accelerator name: `accelerator='nope'`.",
    ),
    "a package that is not installed": (
        ("--trainer.precision", "transformer-engine"),
        "The Trainer refuses an option of --trainer: Requirement 'transformer_engine",
    ),
    "no epoch": (
        ("--trainer.max_epochs", "0", "--save.keep", "last"),
        "--trainer.max_epochs 0 leaves nothing to train. Give 1 or more, or -1 for no limit.",
    ),
    "a share of the test split without a batch": (
        ("--trainer.limit_test_batches", "0.001"),
        "--trainer.limit_test_batches is 0.001, which is less than one of the",
    ),
    "a warm-up without an end": (
        ("--model.optim.warmup_epochs", ".inf"),
        "warmup_epochs inf and step_size_epochs",
    ),
    "a frozen backbone with random weights": (
        ("--model.freeze", "backbone"),
        "model.freeze is backbone, and the backbone has random weights, which would stay random.",
    ),
    "no epoch between validations": (
        ("--trainer.check_val_every_n_epoch", "0"),
        "--trainer.check_val_every_n_epoch is 0; it must be 1 or more.",
    ),
    "more epochs at least than at most": (
        ("--trainer.min_epochs", "3"),
        "--trainer.min_epochs is 3, more than --trainer.max_epochs, 1.",
    ),
    "a callback that does not exist": (
        ("--trainer.callbacks", "Nope"),
        "--trainer.callbacks cannot be Nope. Give a class of lightning.pytorch.callbacks, such as EarlyStopping.",
    ),
    "a logger without its folder": (
        ("--trainer.logger", "CSVLogger"),
        "The class of --trainer.logger needs save_dir. Give --trainer.logger.save_dir.",
    ),
    "a number that is none": (
        ("--model.optim.lr", "nan"),
        "--model.optim.lr must be a number, not 'nan'. All options: eca-hub fit --help",
    ),
    "a number of the data that is none": (
        ("--data.image.crop", "nan"),
        "--data.image.crop must be a number, not 'nan'.",
    ),
    "a negative seed": (("--seed_everything", "-1"), "--seed_everything is -1; it must be 0 to 4294967295."),
    "a seed of more than 32 bits": (("--seed_everything", str(2**32)), "--seed_everything is 4294967296; it must be"),
    "no step": (("--trainer.max_steps", "0"), "--trainer.max_steps 0 leaves nothing to train."),
    "a negative norm": (
        ("--trainer.gradient_clip_val", "-1"),
        "--trainer.gradient_clip_val is -1; it must be 0 or more.",
    ),
    "one beta": (
        ("--model.optim.name", "adamw", "--model.optim.betas", "[0.9]"),
        "The optimizer adamw cannot be made with betas=[0.9]: ",
    ),
    "nothing to train on": (
        ("--trainer.limit_train_batches", "0"),
        "--trainer.limit_train_batches 0 leaves nothing to",
    ),
    "nothing to test on": (("--trainer.limit_test_batches", "0"), "--trainer.limit_test_batches 0 leaves nothing to"),
    "a cosine without an end": (
        ("--trainer.max_epochs", "-1"),
        "--model.optim.schedule cosine needs the number of epochs or steps",
    ),
}


FEW = ("overfit_batches", "a strategy that spawns", "a misspelled monitor")
"""Each is refused at another place; the others are slow tests."""


def few(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in names]


def test_the_table_has_every_option_of_the_trainer() -> None:
    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert WORKING.keys() | REFUSED.keys() == options
    assert REFUSED.keys() == UNSUPPORTED.keys()


def test_every_refused_callback_is_one_of_lightning() -> None:
    assert set(UNSUPPORTED_CALLBACKS) <= set(dir(callbacks))


def refused(options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the sentence with which a run is refused before it has written anything."""
    assert fit(tmp_path / "run", *options, config=ONE_EPOCH) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "epoch 1" not in captured.out
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    return captured.err


@pytest.mark.parametrize("option", few(REFUSED))
def test_a_refused_option_is_one_sentence(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = refused((f"--trainer.{option}", *REFUSED[option]), tmp_path, capsys)
    assert f"--trainer.{option} " in output
    assert f"is not supported: {UNSUPPORTED[option].reason}. {UNSUPPORTED[option].hint}" in output


@pytest.mark.parametrize("mistake", few(MISTAKES))
def test_a_mistake_is_one_sentence_before_training(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, sentence = MISTAKES[mistake]
    assert sentence in refused(options, tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ModelCheckpoint", ("--trainer.callbacks.monitor", "val_top1")),
        pytest.param("EMAWeightAveraging", (), marks=pytest.mark.slow),
    ],
)
def test_a_callback_that_cannot_work_is_refused(
    name: str, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = refused(("--trainer.callbacks", name, *options), tmp_path, capsys)
    assert f"The callback {name} is not supported: {UNSUPPORTED_CALLBACKS[name]}" in output


def test_half_precision_that_the_processor_emulates_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    with pytest.warns(UserWarning, match="precision is bf16-mixed, which this processor has no instructions for"):
        warn_of_emulation("bf16-mixed", torch.device("cpu"))
    warn_of_emulation("32-true", torch.device("cpu"))
    warn_of_emulation("bf16-mixed", torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    warn_of_emulation("bf16-true", torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "warmup_epochs", "remark"),
    [
        (
            {"max_epochs": 1},
            5.0,
            "The run has 1 epoch and --model.optim.warmup_epochs is 5: the learning rate rises to the end",
        ),
        ({"max_epochs": 10, "max_steps": 8}, 2.5, "The run has 2 epochs and --model.optim.warmup_epochs is 2.5: "),
        ({"max_epochs": 10, "max_steps": 8, "limit_train_batches": 2}, 2.5, ""),
        ({"max_epochs": 5}, 5.0, ""),
        ({"max_epochs": -1}, 5.0, ""),
    ],
)
def test_a_warm_up_that_is_longer_than_the_run_is_remarked_on(
    options: dict[str, Any], warmup_epochs: float, remark: str
) -> None:
    trainer = Trainer(**QUIET, **options)
    text = warmup_remark(trainer, 4, warmup_epochs)
    assert text.startswith(remark)
    assert bool(text) == bool(remark)


def printed_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> str:
    """Return what a run has printed when its training would begin; it does not begin."""
    printed: list[str] = []
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, command: printed.append(capsys.readouterr().out))
    for hook in ("before_fit", "after_fit"):
        monkeypatch.setattr(RunCLI, hook, lambda self: None)
    assert fit(tmp_path / "run", *options, config=ONE_EPOCH) == 0
    [text] = printed
    return text


def test_a_run_prints_that_its_warm_up_is_too_long_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed_before_training(tmp_path, monkeypatch, capsys, "--model.optim.warmup_epochs", "7")
    assert "The run has 1 epoch and --model.optim.warmup_epochs is 7: the learning rate rises to the end" in text
    assert "waits" not in text


def test_a_run_of_several_nodes_without_a_launcher_prints_before_training_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it from the rank, and it would stay set.
    for name, value in (("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500"), ("NODE_RANK", "1")):
        monkeypatch.setenv(name, value)
    options = ("--trainer.num_nodes", "2", "--trainer.strategy", "ddp")
    text = printed_before_training(tmp_path, monkeypatch, capsys, *options)
    assert "node 1 of 0 to 1 waits until all nodes are connected to 10.0.0.1 port 29500." in text
    assert "Set MASTER_ADDR and MASTER_PORT, the same on all nodes, and NODE_RANK on each of them" in text


@pytest.mark.soak
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("option", WORKING)
def test_an_option_that_works_leaves_a_package(option: str, tmp_path: Path) -> None:
    values = [value.format(run=tmp_path / "run") for value in WORKING[option]]
    assert fit(tmp_path / "run", f"--trainer.{option}", *values, config=ONE_EPOCH) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_arguments_of_a_callback_that_are_members_of_an_enum_are_written_to_config_yaml(tmp_path: Path) -> None:
    options = ("--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "00:01:00:00")
    assert fit(tmp_path / "run", *options, config=ONE_EPOCH) == 0
    [timer] = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"


@pytest.mark.slow
def test_the_last_weights_are_published_without_a_validation(tmp_path: Path) -> None:
    options: tuple[Any, ...] = ("--trainer.limit_val_batches", "0", "--save.keep", "last")
    assert fit(tmp_path / "run", *options, config=ONE_EPOCH) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert '"val_top1": null' in (tmp_path / "run" / "result.json").read_text()


def test_a_split_with_fewer_images_than_processes_is_refused_before_training() -> None:
    check_processes({"train": 9, "val": 2, "test": 2}, 2)
    with pytest.raises(InvalidConfig, match="The 1 images of the test split cannot be divided among 2 processes"):
        check_processes({"train": 9, "val": 2, "test": 1}, 2)


@pytest.mark.parametrize(
    ("monitor", "options"),
    [("train_loss_step", {"logger": False}), ("val_loss", {"limit_val_batches": 0})],
)
def test_a_metric_that_this_run_does_not_log_cannot_be_monitored(monitor: str, options: dict[str, Any]) -> None:
    def logged() -> set[str]:
        return {"train_loss", "train_loss_step", "val_loss"}

    trainer = Trainer(**QUIET | options, callbacks=[callbacks.EarlyStopping(monitor)])
    with pytest.raises(InvalidConfig, match=f"EarlyStopping monitors '{monitor}', which is not logged"):
        check_monitors(trainer, logged)


LOGGED = {"lr", "train_loss", "train_loss_step", "val_loss"}


@pytest.mark.parametrize(
    ("monitor", "at_epoch_end", "options", "sentence"),
    [
        (
            "train_loss",
            None,
            {"val_check_interval": 0.5},
            "after a validation, when it has no value of the same epoch yet",
        ),
        ("lr", None, {"check_val_every_n_epoch": 2}, "after a validation, when it has no value of the same epoch yet"),
        ("train_loss", False, {}, "after a validation, when it has no value of the same epoch yet"),
        ("val_loss", True, {"check_val_every_n_epoch": 2}, "after every epoch, and not every epoch has a validation"),
    ],
)
def test_a_metric_without_a_value_of_the_same_epoch_when_it_is_checked_cannot_be_monitored(
    monitor: str, at_epoch_end: bool | None, options: dict[str, Any], sentence: str
) -> None:
    stopping = callbacks.EarlyStopping(monitor, check_on_train_epoch_end=at_epoch_end)
    with pytest.raises(InvalidConfig, match=f"EarlyStopping checks '{monitor}' {sentence}"):
        check_monitors(Trainer(**QUIET, **options, callbacks=[stopping]), lambda: LOGGED)


@pytest.mark.parametrize(
    ("monitor", "at_epoch_end", "options"),
    [
        ("train_loss", None, {}),
        ("train_loss", True, {"val_check_interval": 0.5}),
        ("val_loss", None, {"val_check_interval": 0.5}),
        ("val_loss", None, {"check_val_every_n_epoch": 2}),
        ("val_loss", True, {"val_check_interval": 0.5}),
    ],
)
def test_a_metric_with_a_value_of_the_same_epoch_when_it_is_checked_can_be_monitored(
    monitor: str, at_epoch_end: bool | None, options: dict[str, Any]
) -> None:
    stopping = callbacks.EarlyStopping(monitor, check_on_train_epoch_end=at_epoch_end)
    check_monitors(Trainer(**QUIET, **options, callbacks=[stopping]), lambda: LOGGED)


def test_a_plateau_without_a_validation_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="ReduceLROnPlateau needs a validation"):
        check_plateau(Trainer(**QUIET, limit_val_batches=0), "val_loss", lambda: {"val_loss"})


@pytest.mark.parametrize(
    ("options", "num_epochs"),
    [
        ({"max_epochs": 3}, 3),
        ({"max_epochs": 9, "max_steps": 7}, 1),
        ({"max_epochs": 9, "max_steps": 7, "accumulate_grad_batches": 2}, 3),
        ({"max_epochs": -1}, float("inf")),
    ],
)
def test_an_epoch_that_the_steps_do_not_complete_is_not_counted(options: dict[str, Any], num_epochs: float) -> None:
    assert num_full_epochs(Trainer(**QUIET, **options), 4) == num_epochs
