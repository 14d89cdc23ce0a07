"""LightningCLI with a run folder that can be resumed.

Everything of a run lies in its folder: config.yaml, environment.json, metrics.csv, curves.png, confusion.png,
classes.csv, checkpoints/, result.json and, at the end, the package in model/.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from eca_hub.commandline import MeantOption
from eca_hub.errors import InvalidConfig
from eca_hub.hub.client import check_model_id
from eca_hub.hub.push import push_to_hub
from eca_hub.train import data as kinds
from eca_hub.train.callbacks.checkpointing import Keeper, SaveConfig
from eca_hub.train.callbacks.epoch_log import EpochRows, Speed
from eca_hub.train.callbacks.loss_guard import BadSamples, LossGuard
from eca_hub.train.checkpoint.fingerprint import identity_of
from eca_hub.train.checkpoint.store import WholeCheckpointIO
from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.distributed.launcher import end_together
from eca_hub.train.distributed.signals import Stopped, StopWish, end_workers
from eca_hub.train.distributed.strategies import SyncNorms, check_norms, own_strategy
from eca_hub.train.failures import as_sentence
from eca_hub.train.legacy_options import upgrade_argv
from eca_hub.train.measure import tell_measured, write_predictions
from eca_hub.train.module import ImageClassifier
from eca_hub.train.results import finish_run, write_environment
from eca_hub.train.run_folder import RunFolder, chosen_path, open_to_train
from eca_hub.train.say import say

_IMPORTS_VARIABLE = "ECA_TRAIN_IMPORTS"
_IMPORTABLE = ("eca_hub.train", *(f"lightning.pytorch.{name}" for name in ("callbacks", "loggers", "strategies")))
_OUTSIDE = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"} | {
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
}


class RunParser(MeantOption, LightningArgumentParser):
    """Lightning's parser, with mistakes told as all our commands tell them."""


class Cli(LightningCLI):
    """Train and leave a package, or measure one."""

    wish: StopWish
    command: str
    run_dir: Path
    folder: RunFolder | None = None
    keeper: Keeper | None = None

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Offer the one command that was typed: each costs a parser of hundreds of options."""
        return {cls.command: _OUTSIDE}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, and let the data tell the network its labels and preprocessing."""
        add = parser.add_argument
        flag: dict[str, Any] = {"action": jsonargparse.ActionYesNo, "nargs": "?", "default": False}
        add("--run_dir", type=str | None, default=None, help="Folder of the run; a new one in runs/ by default.")
        add("--resume", help="Go on from the newest checkpoint in run_dir.", **flag)
        add("--overwrite", help="Replace a run that is in run_dir.", **flag)
        add("--allow_changes", help="Resume even if settings or data have changed.", **flag)
        add("--push_to", type=str | None, default=None, help="Publish the package at the end, as OWNER/NAME.")
        parser.add_class_arguments(SaveConfig, "save")
        parser.link_arguments("data.labels", "model.labels", apply_on="instantiate")
        parser.link_arguments("data.image", "model.image", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments after `eca-hub`."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Find the run folder before any work is done."""
        config = self.config[self.subcommand]
        if config["push_to"]:
            check_model_id(config["push_to"])
        if self.subcommand == "fit":
            model = config["model"]
            start = model["from_pretrained"]
            name = Path(start).name if start else f"{model['attention']}_{model['architecture']}"
            self.run_dir = chosen_path(config["run_dir"], name)
            self.folder = open_to_train(self.run_dir, resume=config["resume"], overwrite=config["overwrite"])
        else:
            self.run_dir = _measured_run_dir(config)
        config["run_dir"] = str(self.run_dir)

    def instantiate_classes(self) -> None:
        """Make data, network and trainer, and give all the same seed."""
        super().instantiate_classes()
        assert isinstance(self.model, ImageClassifier)
        assert isinstance(self.datamodule, ImageDataModule)
        seed = self.config[self.subcommand]["seed_everything"]
        self.model.seed = self.datamodule.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is True else int(seed)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep everything of the run in its folder."""
        assert isinstance(self.datamodule, ImageDataModule)
        self.datamodule.check()
        callbacks: list[Callback] = [BadSamples(self.run_dir, self.datamodule.max_bad_samples)]
        speed = Speed() if self.subcommand == "fit" else None
        if speed is not None:
            callbacks += [LossGuard(), speed, EpochRows(self.run_dir, speed)]
        if sys.stdout.isatty():
            from eca_hub.train.callbacks.progress_bar import Bar

            callbacks.append(Bar(speed))
        self.trainer_defaults["callbacks"] = callbacks
        words = self._get(self.config_init, "trainer")
        own_plugins = words.get("plugins") or []
        plugins = own_plugins if isinstance(own_plugins, list) else [own_plugins]
        if words["sync_batchnorm"]:
            plugins = [*plugins, SyncNorms()]
        trainer = super().instantiate_trainer(
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=str(self.run_dir),
            plugins=[*plugins, WholeCheckpointIO()],
            **own_strategy(words),
            **kwargs,
        )
        end_together(trainer, self.wish)
        if words["sync_batchnorm"]:
            check_norms(trainer)
        if self.folder is not None:
            config = self.config["fit"]
            identity = identity_of(self.parser.dump(self.config), self.datamodule.fingerprint(), trainer.world_size)
            self.keeper = Keeper(
                self.folder.checkpoints,
                self.config_init["fit"]["save"],
                self.wish,
                identity,
                self.folder.resumed,
                may_change=config["allow_changes"],
            )
            trainer.callbacks.append(self.keeper)  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Write down what is trained, and on what."""
        write_environment(self.trainer, self.run_dir)
        if self.trainer.is_global_zero:
            text = self._parser("fit").dump(self.config["fit"], skip_none=False)
            (self.run_dir / "config.yaml").write_text(text)
            for logger in self.trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(text))

    def after_fit(self) -> None:
        """Measure the best weights, leave them as a package, and publish it if asked to."""
        assert self.folder is not None
        assert self.keeper is not None
        finish_run(self.trainer, self.model, self.datamodule, self.run_dir, self.folder.checkpoints, self.keeper)
        if (model_id := self.config["fit"]["push_to"]) and self.trainer.is_global_zero:
            published = push_to_hub(self.run_dir, model_id)
            say(f"published as {published.revision}  {published.url}")

    def after_validate(self) -> None:
        """Say what was measured."""
        tell_measured(self.trainer, self.model, "val")

    def after_test(self) -> None:
        """Say what was measured."""
        tell_measured(self.trainer, self.model, "test")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if self.folder is not None and self.folder.resumed is not None:
            kwargs["ckpt_path"] = str(self.folder.resumed.path)
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "predict":
            write_predictions(self.trainer, self.model, self.datamodule, self.run_dir / "predictions.csv")
            return
        super()._run_subcommand(subcommand)


def run(command: str, argv: list[str]) -> None:
    """Run one of the commands with the arguments after it.

    Raises:
        EcaHubError: what the user can mend.
        Stopped: the run was asked to stop, and is saved.
    """
    own = [name for name in os.environ.get(_IMPORTS_VARIABLE, "").split(",") if name]
    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        import_path_denylist=["*"],
        import_path_allowlist=[*_IMPORTABLE, *own],
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in kinds.__all__:
        # What has been imported is what --data can name.
        getattr(kinds, name)
    Cli.wish, Cli.command = StopWish(), command
    with Cli.wish.listening():
        try:
            Cli(
                ImageClassifier,
                ImageDataModule,
                subclass_mode_data=True,
                parser_class=RunParser,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=None,
                trainer_defaults={
                    "max_epochs": 100,
                    "num_sanity_val_steps": 0,
                    "use_distributed_sampler": False,
                    "logger": False,
                    "enable_checkpointing": False,
                },
                parser_kwargs={"prog": "eca-hub", "allow_abbrev": False},
                args=[command, *upgrade_argv(argv)],
            )
        except Exception as error:
            if Cli.wish.number is not None and isinstance(error, RuntimeError | MemoryError | OSError):
                # Workers of the same group may have been stopped before us; what was saved before is whole.
                raise Stopped(Cli.wish.number) from None
            if sentence := as_sentence(error):
                raise sentence from None
            raise
        finally:
            end_workers()


_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    # Loggers are told of every epoch, not of steps.
    ".*is smaller than the logging interval.*",
    # The network keeps frozen norms, and what it is distilled from, in evaluation mode on purpose.
    ".*in eval mode at the start of training.*",
    # The order of training batches follows from the place in training, so there is no state to save.
    ".*your dataloader is not resumable.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
)


def _measured_run_dir(config: Any) -> Path:
    run_dir = Path(config["run_dir"] or ".")
    if not config["model"]["from_pretrained"]:
        if not config["run_dir"]:
            raise InvalidConfig("Which weights?", hint="Give --run_dir of a finished run, or --model.from_pretrained.")
        config["model"]["from_pretrained"] = str(run_dir)
    return run_dir
