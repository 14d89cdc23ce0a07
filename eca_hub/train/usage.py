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
    "--model": "Give --model.architecture and --model.attention.",
}
"""Option of another tool, or of an earlier Lightning, to what to type here."""


def explain_usage(message: str, data_modules: Sequence[str]) -> tuple[str, str] | None:
    """Return a sentence and a hint for a message of the parser; None if its own is good enough.

    Args:
        message: Of the parser, on one line.
        data_modules: Names of the classes that --data accepts.
    """
    if unknown := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.IGNORECASE):
        option = unknown[1].partition("=")[0]
        hint = _FROM_OTHER_TOOLS.get(option)
        return (f"There is no option {option}.", hint) if hint else None
    if comma := re.search(r"Parser key \"([\w.]+)\": Expected a <class 'float'>\. Got value: (\d*,\d+\S*)", message):
        value = comma[2].rstrip(".")
        return f"--{comma[1]} must be a number, not {value!r}.", f"Write a decimal point: {value.replace(',', '.')}"
    if data := re.search(r"Parser key \"data\".*Given value: ([\w.]+?)\.?$", message):
        names = sorted(name for name in data_modules if name.endswith("Data"))
        if data[1] in names:
            return None
        close = difflib.get_close_matches(data[1], names, n=1, cutoff=0.4)
        return (
            f"There is no data module {data[1]}.",
            (f"Did you mean {close[0]}? " if close else "") + f"All of them: {', '.join(names)}.",
        )
    return None
