"""Hints for mistakes on the command line of `eca-hub fit` whose closest option would mislead."""

import difflib
import re
from collections.abc import Sequence

_FROM_OTHER_TOOLS = {
    "--trainer.gpus": "Give --trainer.accelerator gpu --trainer.devices N.",
    "--trainer.tpu_cores": "Give --trainer.accelerator tpu --trainer.devices N.",
    "--trainer.num_processes": "Give --trainer.accelerator cpu --trainer.devices N.",
    "--trainer.resume_from_checkpoint": "Give --run_dir of the run and --resume.",
    "--trainer.checkpoint_callback": "See --save.every_minutes, --save.every_steps and --save.keep.",
    "--trainer.lr": "Give --model.optim.lr.",
    "--ckpt_path": "Give --run_dir of the run and --resume.",
    "--model.num_classes": "The number of classes comes from the data.",
    "--num_classes": "The number of classes comes from the data.",
    "--model.lr": "Give --model.optim.lr.",
    "--lr": "Give --model.optim.lr.",
    "--epochs": "Give --trainer.max_epochs.",
    "--batch_size": "Give --data.batch_size.",
    "--b": "Give --data.batch_size.",
    "--num_workers": "Give --data.num_workers.",
    "--workers": "Give --data.num_workers.",
    "--j": "Give --data.num_workers.",
    "--gpus": "Give --trainer.accelerator gpu --trainer.devices N.",
    "--seed": "Give --seed_everything.",
    "--wd": "Give --model.optim.weight_decay.",
    "--weight_decay": "Give --model.optim.weight_decay.",
    "--opt": "Give --model.optim.name.",
    "--pretrained": "Give --model.from_pretrained OWNER/NAME or FOLDER.",
    "--model": "Give --model.architecture and --model.attention.",
}
"""Option of another tool, or of an earlier Lightning, to what to type here."""


def explain_usage(message: str, data_modules: Sequence[str]) -> tuple[str, str] | None:
    """Return a sentence and a hint for a message of the parser; None if its own is good enough.

    Args:
        message: Of the parser, on one line.
        data_modules: Names of the classes that --data accepts.
    """
    if re.match(r"the following arguments are required: fit\.data\b", message, re.IGNORECASE):
        return "No data are given.", "Give --data, such as --data ImageFolderData --data.root FOLDER, or -c FILE."
    if unknown := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.IGNORECASE):
        option = unknown[1].partition("=")[0]
        hint = _FROM_OTHER_TOOLS.get("--" + option.lstrip("-").replace("-", "_"))
        return (f"There is no option {option}.", hint) if hint else None
    if comma := re.search(r"Parser key \"([\w.]+)\": Expected a <class 'float'>\. Got value: (\d*,\d+\S*)", message):
        value = comma[2].rstrip(".")
        return f"--{comma[1]} must be a number, not {value!r}.", f"Write a decimal point: {value.replace(',', '.')}"
    if chosen := re.match(r'Parser key "(optimizer|lr_scheduler)": (.*)', message):
        return _explain_class(chosen[1], chosen[2])
    if wrong := re.search(r"Parser key \"data\".*Errors: - --([\w.]+) (must be .*?, not '.*?')\.", message):
        return f"--data.{wrong[1]} {wrong[2]}.", ""
    if part := re.match(r'Parser key "trainer\.(callbacks|plugins|logger)(?:\.\w+)?": (.*)', message):
        return _explain_part(part[1], part[2])
    if folder := re.search(r"--resume/--no_resume: .*value: '(.*)'", message):
        return f"--resume takes no value, and {folder[1]!r} was given.", f"Give --run_dir {folder[1]} --resume."
    if network := re.search(r"Parser key \"model\": Unable to load config '(.*?)'", message):
        return f"--model is a group of options, not {network[1]!r}.", f"Give --model.architecture {network[1]}."
    if unknown := re.search(
        r"Parser key \"data\".*Option '([\w.]+)' is not accepted(\. Did you mean --(\w+)\?)?", message
    ):
        hint = f"Did you mean --data.{unknown[3]}?" if unknown[3] else "All options: eca-hub fit --help_all"
        return f"There is no option --data.{unknown[1]}.", hint
    if data := re.search(r"Parser key \"data\".*Given value: ([\w.]+?)\.?$", message):
        names = sorted(name for name in data_modules if name.endswith("Data"))
        if data[1] in names:
            return None
        close = difflib.get_close_matches(data[1], names, n=1, cutoff=0.4)
        return (
            f"There is no data module {data[1]}.",
            (f"Did you mean {close[0]}? " if close else "") + f"All of them: {', '.join(names)}.",
        )
    if value := re.search(r"Parser key \"([\w.]+)\": Does not validate.*Given value: (.*?)\.?$", message):
        return _explain_value(value[1], value[2], message)
    return None


_PARTS = {
    "callbacks": "Give a class of lightning.pytorch.callbacks, such as EarlyStopping.",
    "plugins": "Give a class of lightning.pytorch.plugins.",
    "logger": "Give true for TensorBoard; others need a YAML file.",
}
"""Option of the Trainer that takes classes, to the hint."""


def _explain_part(option: str, message: str) -> tuple[str, str] | None:
    """Explain why a class in an option of the Trainer, or an argument of that class, is not accepted."""
    if missing := re.search(r"The following arguments are required: (\w+)", message):
        return f"The class of --trainer.{option} needs {missing[1]}.", f"Give --trainer.{option}.{missing[1]}."
    if unknown := re.search(r"Expected a path but (\S+) either", message):
        return f"--trainer.{option} cannot be {unknown[1]}.", _PARTS[option]
    return None


def _explain_value(option: str, value: str, message: str) -> tuple[str, str] | None:
    """Say which values an option takes, if it takes numbers or words."""
    if choices := re.findall(r"'([\w-]+)'", " ".join(re.findall(r"Literal\[(.*?)\]", message))):
        return f"--{option} cannot be {value!r}.", f"Give one of {', '.join(dict.fromkeys(choices))}."
    if number := re.search(r"Subtypes: \[<class '(int|float)'>", message):
        expected = "a whole number" if number[1] == "int" else "a number"
        return f"--{option} must be {expected}, not {value!r}.", ""
    return None


def _explain_class(option: str, message: str) -> tuple[str, str] | None:
    """Explain why a class or one of its arguments is not accepted."""
    example = "torch.optim.AdamW" if option == "optimizer" else "torch.optim.lr_scheduler.StepLR"
    if unknown := re.search(r"Option '(\w+)' is not accepted\.( Did you mean --(\w+)\?)?", message):
        hint = f"Did you mean {unknown[3]}?" if unknown[3] else ""
        return f"The class of --{option} has no argument {unknown[1]!r}.", hint
    if several := re.search(r"Multiple subclasses with name (\w+)\..*?: ([\w.]+), ([\w.]+)\.", message):
        return f"There are several classes named {several[1]}.", f"Give {several[2]} or {several[3]}."
    if missing := re.search(r"The following arguments are required: (.*?)\.", message):
        return f"The class of --{option} needs {missing[1]}.", f"Give --{option}.init_args.{missing[1].split(',')[0]}."
    if given := re.search(r"Given value(?: type)?:.*?([\w.]+)[.']?$", message):
        return f"--{option} cannot be {given[1].rstrip('.')}.", f"Give a class, such as {example}."
    return None
