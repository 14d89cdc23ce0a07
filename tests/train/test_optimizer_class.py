"""Optimizers and schedulers by class, as users of LightningCLI give them, beside the names of this project."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import eca_hub
from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.store import VerifiedCheckpointIO
from eca_hub.train.detection import DetectionModule
from eca_hub.train.legacy_options import upgrade_argv
from eca_hub.train.optim import OptimConfig, make_optimizer, make_scheduler
from tests.train.runs import CONFIG, NUM_BATCHES, checkpoints, fit, stop_at, weights_hash

PLAIN = CONFIG.replace("  optim: {lr: 0.05, warmup_epochs: 1}\n", "")
ADAMW = "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.004, weight_decay: 0.05, betas: [0.8, 0.9]}}\n"
STEPS = "lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.5}}\n"
PLATEAU = """
lr_scheduler:
  class_path: ReduceLROnPlateau
  init_args: {monitor: val_loss, patience: 0, threshold: 1.0, threshold_mode: abs}
"""


def rates(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def optimizer_state(run_dir: Path) -> dict[str, Any]:
    [state] = VerifiedCheckpointIO().load_checkpoint(checkpoints(run_dir)[-1])["optimizer_states"]
    return dict(state)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose YAML names both classes."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert fit(run_dir, config=PLAIN + ADAMW + STEPS) == 0
    return run_dir


@pytest.mark.slow
def test_classes_of_a_yaml_file_train_with_their_arguments(whole_run: Path) -> None:
    assert rates(whole_run) == pytest.approx([0.004, 0.002, 0.001])
    groups = optimizer_state(whole_run)["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.9)}
    # Norms, biases and ECA kernels do not decay, as with an optimizer by name.
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]


@pytest.mark.slow
def test_the_written_configuration_says_what_was_trained(whole_run: Path) -> None:
    config = yaml.safe_load((whole_run / "config.yaml").read_text())
    assert config["model"]["optim"]["name"] == "torch.optim.AdamW"
    assert config["model"]["optim"]["lr"] == 0.004
    assert config["model"]["optim"]["schedule_args"]["step_size"] == 1
    assert (config["optimizer"], config["lr_scheduler"]) == (None, None)
    assert "torch.optim.AdamW, weight decay 0.05" in (whole_run / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["inside an epoch", pytest.param("between two epochs", marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_with_the_state_of_both(moment: str, whole_run: Path, tmp_path: Path) -> None:
    hook = ("on_train_batch_end", NUM_BATCHES + 3) if moment == "inside an epoch" else ("on_train_epoch_end", 2)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *hook)
        assert fit(tmp_path / "run", config=PLAIN + ADAMW + STEPS) == 143
    assert fit(tmp_path / "run", "--resume", config=PLAIN + ADAMW + STEPS) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(whole_run)
    assert rates(tmp_path / "run") == rates(whole_run)


@pytest.mark.parametrize(
    "hook", [("on_train_epoch_end", 1), pytest.param(("on_validation_batch_end", 5), marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_plateau_lowers_the_rate_by_a_metric_and_resumes(hook: tuple[str, int], tmp_path: Path) -> None:
    # No loss is better by 1, so that the rate falls after every validation but the first.
    assert fit(tmp_path / "whole", config=PLAIN + ADAMW + PLATEAU) == 0
    assert rates(tmp_path / "whole") == pytest.approx([0.004, 0.004, 0.0004])
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *hook)
        assert fit(tmp_path / "run", config=PLAIN + ADAMW + PLATEAU) == 143
    assert fit(tmp_path / "run", "--resume", config=PLAIN + ADAMW + PLATEAU) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_class_and_a_schedule_by_name_go_together(tmp_path: Path) -> None:
    options = ("--optimizer", "torch.optim.RMSprop", "--optimizer.lr", "0.001", "--optimizer.init_args.alpha=0.9")
    assert fit(tmp_path / "run", *options, "--model.optim.warmup_epochs", "1", config=PLAIN) == 0
    assert rates(tmp_path / "run")[0] == pytest.approx(0.001)
    assert optimizer_state(tmp_path / "run")["param_groups"][0]["alpha"] == 0.9


@pytest.mark.slow
def test_another_schedule_starts_anew_and_says_so(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_epoch_end", 2)
        assert fit(tmp_path / "run", config=PLAIN + ADAMW + STEPS) == 143
    assert fit(tmp_path / "run", "--resume", "--allow_changes", config=PLAIN + ADAMW) == 0
    assert "The schedule of the learning rate starts anew, because it was StepLR and is LambdaLR." in (
        capsys.readouterr().out
    )
    # The cosine is a function of the step.
    assert rates(tmp_path / "run")[-1] < 0.004 * 0.2


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "both rates": (
        ("--optimizer", "torch.optim.AdamW", "--model.optim.lr", "0.1"),
        "--optimizer and --model.optim.lr are both given. Give lr as --optimizer.init_args.lr",
    ),
    "both optimizers": (
        ("--optimizer", "torch.optim.AdamW", "--model.optim.name", "sgd"),
        "--optimizer and --model.optim.name are both given. Leave out one of them.",
    ),
    "both schedules": (
        ("--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1", "--model.optim.schedule", "cosine"),
        "--lr_scheduler and --model.optim.schedule are both given.",
    ),
    "a plateau without a metric": (
        ("--lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"),
        "The class of --lr_scheduler needs monitor. Give --lr_scheduler.init_args.monitor.",
    ),
    "a metric that is not measured": (
        ("--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.monitor", "val/loss"),
        "ReduceLROnPlateau monitors 'val/loss', which no validation measures. Give val_loss, ",
    ),
    "no such class": (("--optimizer", "torch.optim.AdmW"), "--optimizer cannot be torch.optim.AdmW."),
    "no optimizer": (("--optimizer", "os.system"), "--optimizer cannot be os.system."),
    "no such argument": (
        ("--optimizer", "torch.optim.AdamW", "--optimizer.lrr", "1"),
        "The class of --optimizer has no argument 'lrr'. Did you mean lr?",
    ),
    "a class that cannot train": (("--optimizer", "torch.optim.LBFGS"), "it repeats the forward pass"),
    "a class for matrices only": (("--optimizer", "torch.optim.Muon"), "Muon only supports 2D parameters"),
    "arguments that are missing": (
        ("--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.1"),
        "OneCycleLR cannot be made: You must define either total_steps",
    ),
}


# Each starts a parser of hundreds of options.
USUAL = ("both rates", "a metric that is not measured", "no such argument")


@pytest.mark.parametrize(
    "mistake", [*USUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in MISTAKES if name not in USUAL)]
)
def test_a_mistake_is_one_sentence_before_training(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, sentence = MISTAKES[mistake]
    assert fit(tmp_path / "run", *options, config=PLAIN) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "epoch 1" not in captured.out


def test_a_class_below_model_optim_is_the_same() -> None:
    words = ["--model.optim.class_path", "torch.optim.SGD", "--model.optim.init_args.lr=0.1", "--model.optim.lr", "1"]
    assert upgrade_argv(words) == [
        "--optimizer.class_path", "torch.optim.SGD", "--optimizer.init_args.lr=0.1", "--model.optim.lr", "1",
    ]  # fmt: skip


def test_a_class_below_model_optim_in_a_file_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {optim: {class_path: torch.optim.SGD, init_args: {lr: 0.1}, agc: 0.01}}")
    [_, text] = upgrade_argv(["--config", str(path)])
    assert yaml.safe_load(text) == {
        "model": {"optim": {"agc": 0.01}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
    }


def test_layer_decay_sets_the_rates_of_the_groups_of_a_class_and_its_scheduler_keeps_their_ratios() -> None:
    model = eca_hub.create_model("eca_resnet20", num_classes=3)
    config = OptimConfig(
        "torch.optim.AdamW", lr=0.1, layer_decay=0.5, schedule="torch.optim.lr_scheduler.ExponentialLR",
        schedule_args={"gamma": 0.1},
    )  # fmt: skip
    optimizer = make_optimizer(config, model)
    scheduler = make_scheduler(config, optimizer, lambda step: 1.0)
    before = [group["lr"] for group in optimizer.param_groups]
    assert len(set(before)) > 1
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 10 for rate in before])


@pytest.mark.parametrize("path", ["os.path", "torch.nn.Linear", "torch.optim.lr_scheduler.StepLR"])
def test_only_optimizers_can_be_named(path: str) -> None:
    with pytest.raises(InvalidConfig, match="is no class of torch"):
        OptimConfig(path)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="There is no schedule 'poly'; there are cosine, step"):
        OptimConfig(schedule="poly")


def test_a_detector_takes_a_scheduler_class_without_its_own_rules() -> None:
    schedule = OptimConfig(schedule="torch.optim.lr_scheduler.StepLR", schedule_args={"step_size": 1})
    with pytest.raises(InvalidConfig, match=r"Give --model.lr_batch_size 0 and no milestones\."):
        DetectionModule(optim=schedule)
