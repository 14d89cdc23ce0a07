"""`eca-hub fit`: LightningCLI with a run folder.

Everything of a run lies in its folder: config.yaml, metrics.csv, curves.png, checkpoints/, result.json and, at the
end, the package in model/.
"""

import datetime
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from eca_hub.commandline import MeantOption
from eca_hub.errors import InvalidConfig
from eca_hub.train.callbacks import BestCheckpoint, Curves, progress_callback
from eca_hub.train.data import DigitsData, ImageData  # noqa: F401  DigitsData: so that its name alone is known
from eca_hub.train.module import ImageClassifier
from eca_hub.train.result import finish_run


class FitParser(MeantOption, LightningArgumentParser):
    """Lightning's parser, with mistakes told as all our commands tell them."""


class Cli(LightningCLI):
    """Train, and leave a package."""

    run_dir: Path

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer training only."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, and let the data tell the network its labels and preprocessing."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Folder of the run; a new one in runs/ by default."
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Whether a finished run in run_dir may be replaced."
        )
        parser.link_arguments("data.labels", "model.labels", apply_on="instantiate")
        parser.link_arguments("data.image", "model.image", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments after `eca-hub`."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Find the run folder before any work is done."""
        config = self.config["fit"]
        self.run_dir = Path(config["run_dir"] or _new_run_dir(config["model"]))
        if (self.run_dir / "model").exists() and not config["overwrite"]:
            raise InvalidConfig(
                f"{self.run_dir} holds a finished run.",
                hint="Give another --run_dir, or --overwrite true to replace it.",
            )
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "metrics.csv").unlink(missing_ok=True)
        except OSError as error:
            raise InvalidConfig(
                f"The run folder {self.run_dir} cannot be used: {error.strerror}.", hint="Give another --run_dir."
            ) from None
        config["run_dir"] = str(self.run_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep everything of the run in its folder."""
        chosen = self._get(self.config_init, "trainer")
        own_loggers = chosen.get("logger") or []
        loggers = own_loggers if isinstance(own_loggers, list) else [own_loggers]
        self.best = BestCheckpoint(self.run_dir / "checkpoints")
        self.trainer_defaults["callbacks"] = [self.best, Curves(self.run_dir), progress_callback()]
        return super().instantiate_trainer(
            logger=[
                CSVLogger(self.run_dir, name="", version=""),
                *[each for each in loggers if not isinstance(each, bool)],
            ],
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
            **kwargs,
        )

    def before_fit(self) -> None:
        """Note when training starts."""
        self.started_s = time.monotonic()

    def after_fit(self) -> None:
        """Measure the best weights and leave them as a package."""
        fit_s = time.monotonic() - self.started_s
        finish_run(self.trainer, self.model, self.datamodule, self.run_dir, self.best, fit_s=fit_s)


def fit(argv: list[str]) -> None:
    """Run `eca-hub fit` with the arguments after the command."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*smaller than the logging interval.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    Cli(
        ImageClassifier,
        ImageData,
        subclass_mode_data=True,
        parser_class=FitParser,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "eca-hub", "allow_abbrev": False},
        args=["fit", *argv],
    )


def _new_run_dir(model: Any) -> str:
    now = datetime.datetime.now().astimezone()
    return f"runs/{now:%Y-%m-%d_%H%M%S}_{model['attention']}_{model['architecture']}"
