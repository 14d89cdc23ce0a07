"""The settings that decide the weights: of a resumed run those of its checkpoint, of a sweep those of all its runs."""

from collections.abc import Mapping
from typing import Any

import yaml

_TRAINER = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "limit_val_batches",
    "overfit_batches",
    "strategy",
    "sync_batchnorm",
)
ADDED_LATER = ("trainer.val_check_interval", "trainer.check_val_every_n_epoch")
"""Settings of a run that older checkpoints do not have; they decide the best weights and the steps of a plateau."""
_TOP_LEVEL = ("seed_everything", "model", "data", "optimizer", "lr_scheduler")
# `processes` stands for the first two in a run; the last one chooses the weights that are tested.
_OF_A_SWEEP = ("trainer.devices", "trainer.num_nodes", "save.keep")
_DECISIVE = (*_TOP_LEVEL, *(f"trainer.{name}" for name in _TRAINER), *_OF_A_SWEEP)
# The location of the files, the number of workers and the size of the cache do not change the weights.
_IGNORED = ("num_workers", "cache_mib", "root", "max_bad_samples")


def run_fingerprint(config_yaml: str, data_fingerprint: str, world_size: int) -> dict[str, Any]:
    """Return the settings that decide the weights, flattened: name of a setting to its value.

    Args:
        config_yaml: The configuration of `eca-hub fit`, as YAML.
        data_fingerprint: Hash of the data set.
        world_size: Number of processes.
    """
    config = yaml.safe_load(config_yaml)
    config = config.get("fit", config)
    flat = {"data set": data_fingerprint, "processes": world_size, "seed_everything": config["seed_everything"]}
    flat |= options_of_training({name: config[name] for name in ("model", "data")})
    names = [*(f"trainer.{name}" for name in _TRAINER), *ADDED_LATER]
    return flat | {name: config["trainer"].get(name.removeprefix("trainer.")) for name in names}


def options_of_training(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options that decide the weights, and groups without a value such as trainer, by their full names.

    Args:
        options: Names to values; a value may be such a mapping, and a name may be a full one.
        prefix: What comes before the names.
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        full_name = f"{prefix}{name}".replace(".init_args", "")
        if isinstance(value, Mapping):
            flat |= options_of_training(value, f"{full_name}.")
        elif _is_decisive(full_name):
            flat[full_name] = value
    return flat


def _is_decisive(full_name: str) -> bool:
    if full_name.startswith("data."):
        return full_name.split(".")[-1] not in _IGNORED
    return any(f"{full_name}.".startswith(f"{each}.") or each.startswith(f"{full_name}.") for each in _DECISIVE)
