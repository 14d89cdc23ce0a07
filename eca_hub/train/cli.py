"""`eca-hub fit`, `validate`, `test` and `predict`: the short help, and everything else through `lightning_cli`.

Importing Lightning takes seconds, so the help is a table here; a test compares it with the real options.
"""

from typing import NamedTuple


class Option(NamedTuple):
    """One line of the short help."""

    name: str
    default: str
    meaning: str


OPTIONS = (
    Option("config", "", "YAML file, repeatable; later files override earlier ones, options override files. Also -c"),
    Option("run_dir", "a new one in runs/", "Folder of the run; all of its files are written there"),
    Option("resume", "false", "Continue from the newest checkpoint in run_dir, to bit-identical weights"),
    Option("overwrite", "false", "Replace a run that is in run_dir"),
    Option("allow_changes", "false", "Resume even if settings or data have changed"),
    Option("push_to", "", "Publish the package at the end, as OWNER/NAME"),
    Option("seed_everything", "0", "Seed of everything random"),
    Option("save.keep", "best", "Weights to test and publish: best (by validation top-1) or last"),
    Option("model.architecture", "", "Backbone, resnet50 by default; see `eca-hub models`"),
    Option("model.attention", "", "Attention inside each block, or none; eca by default"),
    Option("model.from_pretrained", "", "Package to start from, OWNER/NAME or a folder"),
    Option("model.freeze", "none", "What is not trained: none, norms or backbone (a linear probe)"),
    Option("model.optim.name", "sgd", "sgd, adamw, lamb, lion or any other optimizer of timm"),
    Option("optimizer", "", "A class, as for LightningCLI, such as torch.optim.AdamW; lr_scheduler likewise"),
    Option("model.optim.lr", "0.1", "Learning rate at its peak"),
    Option("model.optim.schedule", "cosine", "cosine, step, exponential or constant"),
    Option("model.label_smoothing", "0.0", "Share of each target spread over all classes"),
    Option("model.mix.mixup_alpha", "0.0", "Alpha of MixUp; model.mix.cutmix_alpha is that of CutMix"),
    Option("model.ema_decay", "0.0", "Running average of the weights, such as 0.9999"),
    Option(
        "data",
        "",
        "ImageFolderData, ParquetData, CsvData, WebDatasetData, DigitsData, ...; CocoData or YoloData for a detector",
    ),
    Option("data.root", "", "Folder of the data, or OWNER/NAME of a data set on the Hub for ParquetData"),
    Option("data.batch_size", "64", "Images in a batch of one process"),
    Option("data.num_workers", "0", "Processes that prepare batches"),
    Option("trainer.max_epochs", "100", "Passes over the training split"),
    Option("trainer.devices", "auto", "GPUs, or processes with --trainer.accelerator cpu"),
    Option(
        "trainer.strategy",
        "auto",
        "ddp, or fsdp to shard weights and optimizer; experiments/configs/cluster for many nodes",
    ),
    Option("trainer.precision", "", "bf16-mixed or 16-mixed for half precision"),
    Option("trainer.logger", "", "true for TensorBoard in run_dir; experiments/configs/log for W&B and MLflow"),
)
"""The options that most runs need; `--help_all` prints the rest."""

_SUMMARIES = {
    "fit": "Train a classifier or a detector, test it and write a package to run_dir/model.",
    "validate": "Evaluate the package of a run on the validation split.",
    "test": "Evaluate the package of a run on the test split.",
    "predict": "Write the prediction for every image of the test split to run_dir/predictions.csv.",
}


def fit(argv: list[str]) -> None:
    """Run `eca-hub fit` with the arguments after the command."""
    _run("fit", argv)


def validate(argv: list[str]) -> None:
    """Run `eca-hub validate`."""
    _run("validate", argv)


def test(argv: list[str]) -> None:
    """Run `eca-hub test`."""
    _run("test", argv)


def predict(argv: list[str]) -> None:
    """Run `eca-hub predict`."""
    _run("predict", argv)


def short_help(command: str) -> str:
    """Return the short help of a command."""
    width = max(len(option.name) for option in OPTIONS)
    rows = [
        f"  --{option.name:<{width}}  {option.meaning}" + (f" ({option.default})" if option.default else "")
        for option in OPTIONS
    ]
    example = {
        "fit": "eca-hub fit -c experiments/configs/digits/eca.yaml --run_dir runs/digits --trainer.max_epochs 5",
    }.get(command, f"eca-hub {command} --run_dir runs/digits")
    head = [
        f"usage: eca-hub {command} [-c FILE]... [--option VALUE]...",
        "",
        _SUMMARIES[command],
        "",
        f"  {example}",
        "",
    ]
    tail = ["", f"All options, Lightning's as well: eca-hub {command} --help_all"]
    return "\n".join([*head, *rows, *tail])


def _run(command: str, argv: list[str]) -> None:
    if any(argument in ("-h", "--help") for argument in argv):
        print(short_help(command))
        return
    from eca_hub.train.lightning_cli import run

    run(command, ["--help" if argument in ("--help_all", "--help-all") else argument for argument in argv])
