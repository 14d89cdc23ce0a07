"""The settings that must be the same for a resumed run to end in the same weights."""

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
    flat |= _flat("model", config["model"])
    flat |= {
        name: value for name, value in _flat("data", config["data"]).items() if name.split(".")[-1] not in _IGNORED
    }
    return flat | {f"trainer.{name}": config["trainer"].get(name) for name in _TRAINER}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(prefix if name == "init_args" else f"{prefix}.{name}", inner)
    return flat
