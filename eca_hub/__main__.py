"""The command line: one table of commands, and a dispatcher that imports only the command that was typed.

Exit codes: 0, 2 for the user's mistake (one sentence on standard error), 1 for a failure, 130 after Ctrl-C.
"""

import difflib
import importlib
import sys

from eca_hub.commands.progress import show_progress
from eca_hub.commands.streams import discard_output, is_output_error, prepare_streams

COMMANDS = {
    "quickstart": (
        "Train on handwritten digits, publish, serve and classify, on this machine",
        "eca_hub.quickstart:main",
    ),
    "fit": ("Train a classifier from a YAML file", "eca_hub.train.cli:fit"),
    "validate": ("Measure a run on its validation split", "eca_hub.train.cli:validate"),
    "test": ("Measure a run on its test split", "eca_hub.train.cli:test"),
    "predict": ("Write a run's predictions for its test split", "eca_hub.train.cli:predict"),
    "sweep": ("Train every combination of a grid, resumable", "eca_hub.commands.sweep:main"),
    "report": ("Tables, plots and statistics of a sweep", "eca_hub.commands.report:main"),
    "classify": ("Classify images", "eca_hub.commands.classify:main"),
    "detect": ("Find the objects in images", "eca_hub.commands.detect:main"),
    "models": ("List the trained models and the networks that can be built", "eca_hub.commands.models:main"),
    "push": ("Publish a run or a package to a hub", "eca_hub.commands.push:main"),
    "pull": ("Download a package from a hub", "eca_hub.commands.pull:main"),
    "card": ("Show and check the model card of a package", "eca_hub.commands.card:main"),
    "verify": ("Check cached models for damage", "eca_hub.commands.verify:main"),
    "convert": ("Convert weights of ECANet, torchvision or timm to a package", "eca_hub.commands.convert:main"),
    "export": ("Export a model to ONNX, torch.export or TorchScript", "eca_hub.commands.export:main"),
    "complexity": ("Count parameters and multiply-adds, next to the paper's", "eca_hub.commands.complexity:main"),
    "localhub": ("Run a hub on this machine", "eca_hub.commands.localhub:main"),
    "serve": ("Serve models over HTTP", "eca_service.__main__:main"),
}
"""Command to its one-line help and to the function that runs it with the arguments after the command."""

_REUSES_MEMORY = frozenset(["fit", "validate", "test", "predict", "serve", "push", "pull", "localhub"])
"""Commands that allocate and free megabytes again and again, so that the allocator keeps freed memory for them."""


_ONLY_PRINT = frozenset(["models", "complexity", "card", "verify", "classify", "detect"])
"""Commands whose work is done when the reader of their output, such as `head`, has exited."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = sys.argv[1:] if argv is None else argv
    command = args[0] if args and args[0] in COMMANDS else ""
    prepare_streams()
    try:
        code = _dispatch(args)
    except KeyboardInterrupt:
        show_progress("")
        code = 130
    except SystemExit:
        # --help has been printed.
        if _flush_output(command):
            return 1
        raise
    except OSError as error:
        if not is_output_error(error):
            raise
        discard_output()
        has_help = any(each == "-h" or each.startswith("--help") for each in args)
        if isinstance(error, BrokenPipeError) and (command in _ONLY_PRINT or not command or has_help):
            return 0
        _print_error(f"The output cannot be written: {error.strerror or error}.", command)
        return 1
    return _flush_output(command) or code


def _flush_output(command: str) -> int:
    """Return 1 if what was printed cannot be written, unless its reader has exited after the command has succeeded."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_output()
        if not isinstance(error, BrokenPipeError):
            _print_error(f"The output cannot be written: {error.strerror or error}.", command)
            return 1
    return 0


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        from eca_hub import __version__

        print(f"eca-hub {__version__}")
        return 0
    if args[0] not in COMMANDS:
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        suggestion = f"Did you mean {close[0]!r}? " if close else ""
        return _print_error(f"There is no command {args[0]!r}. {suggestion}All commands: eca-hub --help")
    return _run(args[0], args[1:])


def _run(command: str, args: list[str]) -> int:
    from eca_hub.errors import EcaHubError

    module_name, function_name = COMMANDS[command][1].split(":")
    if command in _REUSES_MEMORY:
        from eca_hub.allocator import keep_freed_memory

        keep_freed_memory()
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        return int(function(args) or 0)
    except EcaHubError as error:
        _print_error(str(error), command)
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _print_error(
            f"This needs the package {error.name!r}. Install it: pip install 'eca-hub[{extra}]'", command
        )


_MODULES_OF = {
    "train": "lightning torchmetrics sklearn matplotlib scipy rich faster_coco_eval pyarrow",
    "serve": "fastapi starlette uvicorn prometheus_client multipart h11 lz4 markdown_it pydantic",
    "gpu": "triton",
    "tensorboard": "tensorboard",
    "webdataset": "webdataset",
    "ray": "ray",
    "otel": "opentelemetry",
    "export": "onnx onnxscript onnxruntime",
}
_EXTRA_OF = {module: extra for extra, modules in _MODULES_OF.items() for module in modules.split()}


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(["usage: eca-hub COMMAND [--help] ...", "", *lines])


def _print_error(sentence: str, command: str = "") -> int:
    show_progress("")
    print(f"eca-hub{f' {command}' if command else ''}: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
