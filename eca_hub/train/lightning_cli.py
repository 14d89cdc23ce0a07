"""LightningCLI with a run folder that can be resumed.

All files of a run are in its folder: config.yaml, environment.json, metrics.csv, curves.png, confusion.png,
classes.csv, checkpoints/, result.json and, at the end, the package in model/.
"""

import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import jsonargparse
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from eca_hub.atomic import write_atomic
from eca_hub.commandline import SuggestionMixin
from eca_hub.errors import InvalidConfig, InvalidUsage
from eca_hub.hub.package import is_file
from eca_hub.hub.pull import pull
from eca_hub.hub.push import check_push_access, push_folder
from eca_hub.paths import expand_home
from eca_hub.train import data as data_modules
from eca_hub.train.callbacks.bad_samples import BadSampleLog
from eca_hub.train.callbacks.checkpointing import CheckpointConfig, ResumableCheckpoint
from eca_hub.train.callbacks.epoch_log import EpochLog, ThroughputMonitor
from eca_hub.train.callbacks.loss_guard import NonFiniteLossGuard
from eca_hub.train.checkpoint.fingerprint import run_fingerprint
from eca_hub.train.checkpoint.store import VerifiedCheckpointIO
from eca_hub.train.data.source import SPLITS
from eca_hub.train.distributed.launcher import announce_nodes, end_while_connecting, requeue_plugins, terminate_together
from eca_hub.train.distributed.signals import Stopped, StopRequest, kill_workers
from eca_hub.train.distributed.strategies import SyncBatchNormPlugin, check_sync_batchnorm, make_strategy
from eca_hub.train.environment import imports_of_the_user
from eca_hub.train.errors import refused_option, user_message_for
from eca_hub.train.legacy_options import upgrade_argv
from eca_hub.train.lightning_internals import is_rank_zero
from eca_hub.train.optim import IMPORTABLE as OPTIMIZERS
from eca_hub.train.optim import check_optimizer_and_scheduler
from eca_hub.train.optimizer_class import use_given_classes
from eca_hub.train.results import RunResults, write_environment
from eca_hub.train.run_folder import RunFolder, choose_run_dir, open_run_folder
from eca_hub.train.tasks import Task, task_for
from eca_hub.train.trainer_options import (
    check_monitors,
    check_options,
    check_plateau,
    check_processes,
    check_shares,
    check_validation,
    num_full_epochs,
    warmup_remark,
    warn_of_emulation,
)
from eca_hub.train.training_module import TrainingModule
from eca_hub.train.usage import explain_usage

_IMPORTABLE = (
    "eca_hub.train",
    *(f"lightning.pytorch.{name}" for name in ("callbacks", "loggers", "strategies")),
    *OPTIMIZERS,
)
_FROM_PACKAGE = ("architecture", "attention", "stem")
_OF_ONE_CALL = {"resume": False, "overwrite": False, "allow_changes": False, "push_to": None}
_LOCATION_OPTIONS = ("--run_dir", *(f"--{name}" for name in _OF_ONE_CALL))
_OUTSIDE = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"} | {
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
}


class RunArgumentParser(SuggestionMixin, LightningArgumentParser):
    """Lightning's parser, with the error messages of all commands."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InvalidUsage, with a hint of its own for the mistakes that users of other tools make."""
        if explanation := explain_usage(" ".join(message.split()), data_modules.__all__):
            raise InvalidUsage(explanation[0], hint=explanation[1]) from None
        super().error(message, ex)


class RunCLI(LightningCLI):
    """LightningCLI with a run folder: `fit` trains and writes a package, the other commands evaluate one."""

    request: StopRequest
    command: str
    argv: ClassVar[list[str]]
    """The arguments after the command."""
    uses_config_of_run: ClassVar[bool]
    """Whether the only YAML file is the config.yaml of the run, which the user did not name."""
    task: Task
    run_dir: Path
    folder: RunFolder | None = None
    checkpoint: ResumableCheckpoint | None = None
    _given: Callable[[], Any]
    """Returns the configuration of the command without defaults."""

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Return the given command only: each costs a parser of hundreds of options."""
        return {cls.command: _OUTSIDE}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run folder, and link labels and preprocessing of the data to the network."""
        add = parser.add_argument
        flag: dict[str, Any] = {"action": jsonargparse.ActionYesNo, "nargs": "?", "default": False}
        add("--run_dir", type=str | None, default=None, help="Folder of the run; a new one in runs/ by default.")
        add("--resume", help="Continue from the newest checkpoint in run_dir.", **flag)
        add("--overwrite", help="Replace a run that is in run_dir.", **flag)
        add("--allow_changes", help="Resume even if settings or data have changed.", **flag)
        add("--push_to", type=str | None, default=None, help="Publish the package at the end, as OWNER/NAME.")
        parser.add_class_arguments(CheckpointConfig, "save")
        for base, name, skip in ((Optimizer, "optimizer", "params"), (LRScheduler, "lr_scheduler", "optimizer")):
            parser.add_subclass_arguments(
                base, name, skip={skip}, instantiate=False, fail_untyped=False, required=False
            )
        for source, target in self.task.links:
            parser.link_arguments(source, target, apply_on="instantiate")
        for source, target, compute in self.task.parse_links:
            parser.link_arguments(source, target, compute_fn=compute)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments after `eca-hub`."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        seed = self.config[self.command]["seed_everything"]
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InvalidConfig(f"--seed_everything is {seed}; it must be 0 to {2**32 - 1}.")
        self._given = lambda: parser.parse_args(args, defaults=False).get(self.command, {})
        use_given_classes(self.config[self.command], self._given)

    def before_instantiate_classes(self) -> None:
        """Open the run folder before any work is done."""
        config = self.config[self.subcommand]
        if config["push_to"] and is_rank_zero():
            check_push_access(config["push_to"])
        if self.subcommand == "fit":
            model = config["model"]
            start = model["from_pretrained"]
            name = Path(start).name if start else self.task.run_name(model)
            self.run_dir = choose_run_dir(config["run_dir"], name)
            self.folder = open_run_folder(
                self.run_dir,
                resume=config["resume"],
                overwrite=config["overwrite"],
                max_epochs=config["trainer"]["max_epochs"],
                max_steps=config["trainer"]["max_steps"],
            )
        else:
            self.run_dir = _evaluated_run_dir(config)
            self._take_preprocessing(config["model"], config["data"]["init_args"])
        config["run_dir"] = str(self.run_dir)

    def _take_preprocessing(self, model: Any, data: Any) -> None:
        """Set the preprocessing of the data to that of the package, except for what the user gives."""
        package = pull(model["from_pretrained"], model["revision"])
        given: Any = {} if self.uses_config_of_run else self._given().get("data.init_args") or {}
        on_command_line = {
            match[1] for argument in self.argv if (match := re.match(r"--data\.(?:init_args\.)?([\w.]+)", argument))
        }
        for option, value in self.task.preprocessing(package.config_bytes, package.model_id).items():
            if not isinstance(value, dict):
                if given.get(option) is None and option not in on_command_line:
                    data[option] = value
                continue
            for name, each in value.items():
                if name not in (given.get(option) or {}) and f"{option}.{name}" not in on_command_line:
                    data[option][name] = each

    def instantiate_classes(self) -> None:
        """Make data, network and trainer, with the same seed."""
        super().instantiate_classes()
        assert isinstance(self.model, self.task.module)
        assert isinstance(self.datamodule, self.task.data)
        if self.subcommand != "fit" and self.model.has_new_head:
            raise InvalidConfig(
                f"The classes of {self.config[self.subcommand]['model']['from_pretrained']} are not those of the data "
                f"{self.datamodule.title}: {', '.join(self.datamodule.labels[:5])}.",
                hint="Give the data that it was trained on"
                + (", with the same data.multi_label." if hasattr(self.datamodule, "is_multi_label") else "."),
            )
        seed = self.config[self.subcommand]["seed_everything"]
        self.model.seed = self.datamodule.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is True else int(seed)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with everything it writes in the run folder."""
        assert isinstance(self.datamodule, self.task.data)
        assert isinstance(self.model, TrainingModule)
        options = self._get(self.config_init, "trainer")
        check_options(options, self.model.optim_config.schedule)
        self.datamodule.check()
        throughput = ThroughputMonitor() if self.subcommand == "fit" else None
        callbacks: list[Callback] = [BadSampleLog(self.run_dir, self.datamodule.max_bad_samples)]
        if throughput is not None:
            callbacks += [NonFiniteLossGuard(), throughput, EpochLog(self.run_dir, throughput)]
        shows_bar = sys.stdout.isatty() and options["enable_progress_bar"] is not False
        if shows_bar:
            from eca_hub.train.callbacks.progress_bar import ProgressBar

            callbacks.append(ProgressBar(throughput))
        self.trainer_defaults["callbacks"] = callbacks
        given_plugins = options.get("plugins") or []
        plugins = list(given_plugins) if isinstance(given_plugins, list) else [given_plugins]
        if options["sync_batchnorm"]:
            plugins.append(SyncBatchNormPlugin())
        try:
            trainer = super().instantiate_trainer(
                enable_model_summary=False,
                enable_progress_bar=shows_bar,
                default_root_dir=str(self.run_dir),
                plugins=[*plugins, *requeue_plugins(), VerifiedCheckpointIO()],
                **make_strategy(options),
                **kwargs,
            )
        except (ValueError, TypeError, ImportError) as error:
            # The Trainer does not accept the value of an option; the type of its error depends on the option.
            raise user_message_for(error) or refused_option(error) from None
        self.datamodule.check_shared_memory("train" if self.subcommand == "fit" else "test", trainer.num_devices)
        terminate_together(trainer, self.request)
        end_while_connecting(trainer, self.request)
        if options["sync_batchnorm"]:
            check_sync_batchnorm(trainer)
        warn_of_emulation(trainer.precision, trainer.strategy.root_device)
        if self.folder is not None:
            self._add_checkpointing(trainer, self.folder)
        announce_nodes(trainer)
        return trainer

    def _add_checkpointing(self, trainer: Trainer, folder: RunFolder) -> None:
        """Add the callback that saves the run, after the checks that need the trainer."""
        assert isinstance(self.datamodule, self.task.data)
        assert isinstance(self.model, TrainingModule)
        config, save = self.config["fit"], self.config_init["fit"]["save"]
        for name in _FROM_PACKAGE:
            # config.yaml names what is trained, also where it is the default or comes from a package.
            if name in config["model"] and hasattr(self.model.config, name):
                config["model"][name] = getattr(self.model.config, name)
        check_monitors(trainer, self.model.logged_names)
        check_plateau(trainer, self.model.optim_config.monitor, self.model.logged_names)
        fingerprint = run_fingerprint(self.parser.dump(self.config), self.datamodule.fingerprint(), trainer.world_size)
        self.checkpoint = ResumableCheckpoint(
            folder.checkpoints, save, self.request, fingerprint, folder.resumed, allow_changes=config["allow_changes"]
        )
        self.checkpoint.check_limits(trainer.max_epochs, trainer.max_steps)
        self.model.check_data(self.datamodule)
        check_processes({split: self.datamodule.num_images(split) for split in SPLITS}, trainer.world_size)
        num_images, batch_size = self.datamodule.num_images("train"), self.datamodule.batch_size * trainer.world_size
        self.model.check_batch(min(self.datamodule.batch_size, num_images // trainer.world_size))
        num_batches = max(num_images // batch_size, 1)
        evaluated = {split: math.ceil(self.datamodule.num_images(split) / batch_size) for split in ("val", "test")}
        check_optimizer_and_scheduler(self.model.optim_config, self.model.model, num_full_epochs(trainer, num_batches))
        check_shares(self._get(self.config_init, "trainer"), {"train": num_batches, **evaluated})
        check_validation(trainer, num_batches, is_needed=save.keep == "best")
        remark = warmup_remark(trainer, num_batches, self.model.optim_config.warmup_epochs)
        if remark and not self.model.optim_config.has_scheduler_class and trainer.is_global_zero:
            print(remark, flush=True)
        trainer.callbacks.append(self.checkpoint)  # type: ignore[attr-defined]

    def before_fit(self) -> None:
        """Remove what an overwritten run has left, and write config.yaml and environment.json."""
        assert self.folder is not None
        self.folder.begin()
        write_environment(self.trainer, self.run_dir)
        if self.trainer.is_global_zero:
            # What the user has allowed for this call is not allowed for the next one with the same file.
            config = self.config["fit"].clone()
            for name, value in _OF_ONE_CALL.items():
                config[name] = value
            text = self._parser("fit").dump(config, skip_none=False)
            write_atomic(self.run_dir / "config.yaml", text.encode())
            for logger in self.trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(text))

    def after_fit(self) -> None:
        """Test the best weights, write them as a package, and publish it with --push_to."""
        assert self.folder is not None
        assert self.checkpoint is not None
        command = ["eca-hub", "fit", *_without_locations(self.argv)]
        self._results().finalize(self.run_dir, self.folder.checkpoints, self.checkpoint, command)
        if (model_id := self.config["fit"]["push_to"]) and self.trainer.is_global_zero:
            published = push_folder(self.run_dir, model_id)
            print(f"published as {published.revision}  {published.url}", flush=True)

    def after_validate(self) -> None:
        """Print the metrics."""
        self._results().print_metrics("val")

    def after_test(self) -> None:
        """Print the metrics."""
        self._results().print_metrics("test")

    def _results(self) -> RunResults:
        results: RunResults = self.task.results(self.trainer, self.model, self.datamodule)
        return results

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if self.folder is not None and self.folder.resumed is not None:
            kwargs["ckpt_path"] = str(self.folder.resumed.path)
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "predict":
            self._results().write_predictions(self.run_dir / "predictions.csv")
            return
        super()._run_subcommand(subcommand)


def run(command: str, argv: list[str]) -> None:
    """Run one of the commands with the arguments after it.

    Raises:
        EcaHubError: a mistake that the user can correct.
        Stopped: a signal ended the run, and a checkpoint was saved.
    """
    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        import_path_denylist=["*"],
        import_path_allowlist=[*_IMPORTABLE, *imports_of_the_user()],
    )
    # Arguments of callbacks, such as Timer's interval, may be enum members, which YAML cannot represent: write values.
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in data_modules.__all__:
        # --data accepts the names of imported classes.
        getattr(data_modules, name)
    given = len(argv)
    argv = _with_config_of_run(command, argv)
    RunCLI.uses_config_of_run = len(argv) > given
    RunCLI.request, RunCLI.command, RunCLI.argv, RunCLI.task = StopRequest(), command, argv, task_for(argv)
    with RunCLI.request.installed():
        try:
            RunCLI(
                RunCLI.task.module,
                RunCLI.task.data,
                subclass_mode_data=True,
                parser_class=RunArgumentParser,
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
            if RunCLI.request.signal_number is not None and isinstance(error, RuntimeError | MemoryError | OSError):
                # The signal may have ended a worker of the same process group first.
                raise Stopped(RunCLI.request.signal_number) from None
            if translated := user_message_for(error):
                raise translated from None
            raise
        finally:
            kill_workers()


def _with_config_of_run(command: str, argv: list[str]) -> list[str]:
    """Add the config.yaml of the run to the arguments of an evaluation, if they name no configuration and no data.

    Raises:
        InvalidUsage: no run is given either, or it has no config.yaml.
    """
    options = {name: value for name, _, value in (argument.partition("=") for argument in argv) if name.startswith("-")}
    if command == "fit" or options.keys() & {"-c", "--config", "--data", "--data.class_path", "-h", "--help"}:
        return argv
    data = "--data ImageFolderData --data.root FOLDER"
    if "--run_dir" not in options:
        if "--model.from_pretrained" in options:
            raise InvalidUsage("No data are given to evaluate the package on.", hint=f"Give {data}, or -c FILE.")
        raise InvalidUsage(
            "Neither a run nor a package and data are given.",
            hint=f"Give --run_dir of a finished run, or --model.from_pretrained PACKAGE {data}.",
        )
    following = argv[argv.index("--run_dir") + 1 :][:1] if "--run_dir" in argv else [options["--run_dir"]]
    config = expand_home(Path(*following)) / "config.yaml"
    if not is_file(config):
        raise InvalidUsage(f"{config}, which names the data of the run, does not exist.", hint=f"Give {data}.")
    return ["--config", str(config), *argv]


def _without_locations(argv: Sequence[str]) -> list[str]:
    """Leave out the options, with their values, that say where a run is and not how it trains."""
    remaining: list[str] = []
    is_value = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if name in _LOCATION_OPTIONS:
            is_value = not equals
        elif not is_value or argument.startswith("-"):
            remaining.append(argument)
            is_value = False
        else:
            is_value = False
    return remaining


_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    # Metrics are logged once per epoch.
    ".*is smaller than the logging interval.*",
    # Scheduler classes make a step after every epoch, as with LightningCLI.
    ".*OneCycleLR.*interval.*",
    # Frozen norms stay in evaluation mode on purpose.
    ".*in eval mode at the start of training.*",
    # The order of the training batches follows from the position in training, so the loader has no state.
    ".*your dataloader is not resumable.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
)


def _evaluated_run_dir(config: Any) -> Path:
    run_dir = expand_home(config["run_dir"] or ".")
    if not config["model"]["from_pretrained"]:
        if not config["run_dir"]:
            raise InvalidConfig(
                "No weights are given.", hint="Give --run_dir of a finished run, or --model.from_pretrained."
            )
        config["model"]["from_pretrained"] = str(run_dir)
    for name in (*_FROM_PACKAGE, "attention_args"):
        if name in config["model"]:
            config["model"][name] = None
    return run_dir
