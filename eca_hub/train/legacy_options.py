"""Old spellings of training options, as in the config.yaml files that runs before version 0.2 left.

`upgrade_argv` rewrites a command line and the YAML files that it names. Each rewritten option is named in one warning.
What only users of Lightning write differently is rewritten without a warning: an optimizer that is given by class below
`model.optim` becomes `optimizer`, and ReduceLROnPlateau is Lightning's, which takes the metric to monitor.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RENAMED = {
    "model.train": "model.freeze",
    "model.average_decay": "model.ema_decay",
    "model.teacher": "model.distill_from",
    "model.teacher_weight": "model.distill_alpha",
    "model.temperature": "model.distill_temperature",
    "model.dropout": "model.drop_rate",
    "model.mix.mixup": "model.mix.mixup_alpha",
    "model.mix.cutmix": "model.mix.cutmix_alpha",
    "model.mix.probability": "model.mix.mix_prob",
    "model.optim.decay_all": "model.optim.weight_decay_norms_and_biases",
    "model.optim.step_epochs": "model.optim.step_size_epochs",
    "model.optim.decay": "model.optim.gamma",
    "data.augment.min_area": "data.augment.scale_min",
    "data.augment.flip": "data.augment.hflip",
    "data.augment.num_rand_ops": "data.augment.randaugment_num_ops",
    "data.augment.magnitude": "data.augment.randaugment_magnitude",
    "data.augment.erase": "data.augment.random_erasing",
}
"""Old option to new option. In a YAML file, options of the data are below `data.init_args`."""

RENAMED_VALUES: dict[str, dict[str, Any]] = {
    "model.stem": {"own": "default"},
    "model.freeze": {"all": "none", "all_but_norms": "norms", "head": "backbone"},
    "data.augment.crop": {"resized": "random_resized_crop"},
}
"""New option to its old values, each with the new one."""

_CLASS_OPTIONS = {
    "--model.optim.class_path": "--optimizer.class_path",
    "--model.optim.init_args": "--optimizer.init_args",
}
_PLATEAU = "lightning.pytorch.cli.ReduceLROnPlateau"
_OTHER_PLATEAUS = ("ReduceLROnPlateau", "torch.optim.lr_scheduler.ReduceLROnPlateau")
_OF_THE_PACKAGE = ("architecture", "attention", "attention_args", "stem")
_CONFIG_OPTIONS = ("-c", "--config")


def upgrade_argv(argv: Sequence[str]) -> list[str]:
    """Rewrite old spellings on a command line and in the YAML files after `-c` and `--config`.

    A file with an old spelling is replaced by its text, which the parser accepts in the place of a path.

    Args:
        argv: The arguments after the command.
    """
    renamed: dict[str, str] = {}
    upgraded = list(_upgraded_arguments([_class_option(argument) for argument in argv], renamed))
    if renamed:
        pairs = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        warnings.warn(f"Old spellings of options: {pairs}.", FutureWarning, stacklevel=2)
    return upgraded


def upgrade_config(config: Mapping[str, Any], renamed: dict[str, str] | None = None) -> dict[str, Any]:
    """Rewrite old spellings in the contents of a config.yaml.

    Args:
        config: Nested, as YAML has it.
        renamed: Gets each old spelling that was found, with the new one.
    """
    renamed = {} if renamed is None else renamed
    upgraded: dict[str, Any] = _copy(config)
    for path, option in list(_options(upgraded)):
        new_path = path
        if new := RENAMED.get(option):
            renamed[option] = new
            new_path = (*path[:-1], new.rsplit(".", 1)[1])
            _move(upgraded, path, new_path)
        _upgrade_value(upgraded, new_path, new or option, renamed)
    _upgrade_momentum(upgraded, renamed)
    _upgrade_classes(upgraded)
    model = upgraded.get("model")
    if renamed and isinstance(model, dict) and model.get("from_pretrained"):
        # Earlier versions wrote the defaults there, whatever the package had.
        for name in _OF_THE_PACKAGE:
            model.pop(name, None)
    return upgraded


def _upgraded_arguments(argv: Sequence[str], renamed: dict[str, str]) -> Iterator[str]:
    previous = ""
    for argument in argv:
        option, equals, value = argument.removeprefix("--").partition("=")
        if previous in _CONFIG_OPTIONS:
            yield _upgraded_file(argument, renamed)
        elif argument.startswith("--config="):
            yield f"--config={_upgraded_file(value, renamed)}"
        elif argument.startswith("--") and _plain(option) in RENAMED:
            new = RENAMED[_plain(option)]
            renamed[option] = new
            previous = f"--{new}"
            yield f"--{new}{equals}{_upgraded_value(new, value, renamed)}"
            continue
        elif argument.startswith("--") and equals:
            yield f"--{option}={_upgraded_value(_plain(option), value, renamed)}"
        elif previous.startswith("--") and "=" not in previous:
            yield _upgraded_value(_plain(previous.removeprefix("--")), argument, renamed)
        else:
            yield argument
        previous = argument


def _upgraded_value(option: str, value: str, renamed: dict[str, str]) -> str:
    new = RENAMED_VALUES.get(option, {}).get(value)
    if new is None:
        return value
    renamed[f"{option} {value}"] = str(new)
    return str(new)


def _upgraded_file(path: str, renamed: dict[str, str]) -> str:
    """Return the text of a YAML file with old spellings, and the path of any other."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        # The parser reports what is wrong with it.
        return path
    if not isinstance(config, dict):
        return path
    upgraded = upgrade_config(config, renamed)
    return yaml.safe_dump(upgraded, sort_keys=False) if upgraded != config else path


def _class_option(argument: str) -> str:
    for given, option in _CLASS_OPTIONS.items():
        if re.match(rf"{re.escape(given)}(?=$|[=.])", argument):
            return option + argument.removeprefix(given)
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{_PLATEAU}" if value in _OTHER_PLATEAUS else argument


def _plain(option: str) -> str:
    return option.replace("data.init_args.", "data.")


def _options(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of every value and the option that it is."""
    for name, value in config.items():
        option_path = (*path, str(name))
        if isinstance(value, Mapping):
            yield from _options(value, option_path)
        else:
            yield option_path, _plain(".".join(option_path))


def _copy(value: Any) -> Any:
    return {name: _copy(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value


def _node(config: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for name in path:
        config = config[name]
    return config


def _move(config: dict[str, Any], old: Sequence[str], new: Sequence[str]) -> None:
    node = _node(config, old[:-1])
    node[new[-1]] = node.pop(old[-1])


def _upgrade_value(config: dict[str, Any], path: Sequence[str], option: str, renamed: dict[str, str]) -> None:
    node = _node(config, path[:-1])
    value = node[path[-1]]
    new = RENAMED_VALUES.get(option, {}).get(value) if isinstance(value, str) else None
    if new is not None:
        renamed[f"{option} {value}"] = str(new)
        node[path[-1]] = new


def _upgrade_momentum(config: dict[str, Any], renamed: dict[str, str]) -> None:
    """`momentum` was the name of SGD without Nesterov's momentum."""
    model = config.get("model")
    optim = model.get("optim") if isinstance(model, dict) else None
    if isinstance(optim, dict) and optim.get("name") == "momentum":
        renamed["model.optim.name momentum"] = "sgd with model.optim.nesterov false"
        optim.update(name="sgd", nesterov=False)


def _upgrade_classes(config: dict[str, Any]) -> None:
    """Move a class below `model.optim` to `optimizer`, where its arguments are checked; replace torch's plateau."""
    model = config.get("model")
    optim = model.get("optim") if isinstance(model, dict) else None
    if isinstance(optim, dict) and "class_path" in optim:
        config["optimizer"] = {name: optim.pop(name) for name in ("class_path", "init_args") if name in optim}
    scheduler = config.get("lr_scheduler")
    if scheduler in _OTHER_PLATEAUS:
        config["lr_scheduler"] = _PLATEAU
    elif isinstance(scheduler, dict) and scheduler.get("class_path") in _OTHER_PLATEAUS:
        scheduler["class_path"] = _PLATEAU
