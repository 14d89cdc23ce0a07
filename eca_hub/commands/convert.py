"""`eca-hub convert`: weights of ECANet, torchvision and timm into packages, and packages into stock timm."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidConfig, InvalidUsage

if TYPE_CHECKING:
    from torch import nn

    from eca_hub.models.config import ModelConfig


def main(argv: list[str]) -> int:
    """Read a checkpoint or a package, write a folder, and say what came out."""
    parser = CommandParser("convert", "Turn weights of ECANet, torchvision or timm into a package, or into stock timm.")
    parser.add_argument(
        "source",
        metavar="FILE",
        help="A checkpoint (.pth.tar, .pth, .pt, .safetensors); with --format timm also a package or OWNER/NAME.",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="Where to write; a new or empty folder.")
    parser.add_argument(
        "--architecture", help="Such as eca_resnet50, or any name of timm; read from shapes if not given."
    )
    parser.add_argument(
        "--labels", help="A text file with one class name a line, or a .json list; ImageNet's for 1000."
    )
    parser.add_argument("--format", choices=["eca-hub", "timm"], default="eca-hub", help="Who shall load the folder.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    labels = None if args.labels is None else _read_labels(Path(args.labels))
    is_checkpoint = Path(args.source).is_file()
    if not is_checkpoint and args.format == "eca-hub":
        raise InvalidUsage(
            f"There is no file {args.source!r}.", hint="Give a checkpoint, such as eca_resnet50.pth.tar."
        )
    if not is_checkpoint and (labels is not None or args.architecture):
        raise InvalidUsage("A package knows its architecture and labels; leave --architecture and --labels out.")

    from eca_hub.hub.convert import convert_checkpoint
    from eca_hub.hub.whole import check_free

    check_free(args.to)
    _show_progress(f"reading {args.source}")
    if args.format == "eca-hub":
        model, config = convert_checkpoint(args.source, args.to, architecture=args.architecture, labels=labels)
    else:
        from eca_hub.hub.folder import export_to_timm, load_pretrained

        if is_checkpoint:
            model, config = convert_checkpoint(args.source, architecture=args.architecture, labels=labels)
        else:
            model, config = load_pretrained(args.source)
        _show_progress(f"writing {args.to}")
        export_to_timm(model, config, args.to)
    _show_progress("")
    _report(model, config, args.to, args.format, as_json=args.json)
    return 0


def _report(model: "nn.Module", config: "ModelConfig", folder: str, written_for: str, *, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "folder": folder,
        "format": written_for,
        "architecture": config.architecture,
        "attention": config.attention,
        "attention_args": dict(config.attention_args),
        "num_classes": config.num_classes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if as_json:
        print(json.dumps(facts))
        return
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    options = ", ".join(f"{key} = {value}" for key, value in config.attention_args.items())
    made = f"{name} ({options})" if options else name
    print(f"{made}: {facts['parameters']:,} parameters, {config.num_classes} classes, written to {folder}")
    if written_for == "timm":
        print(f"Try: python -c 'import timm; timm.create_model(\"local-dir:{folder}\", pretrained=True)'")
    else:
        print(f"Try: eca-hub classify picture.jpg --model {folder}")


def _read_labels(path: Path) -> list[str]:
    if not path.is_file():
        raise InvalidConfig(f"There is no label file {str(path)!r}.", hint="One class name a line, or a JSON list.")
    try:
        text = path.read_text(encoding="utf-8")
        labels = (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except ValueError:
        raise InvalidConfig(f"{path} is neither UTF-8 text nor JSON.") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or not labels:
        raise InvalidConfig(f"{path} holds no list of names.", hint="One class name a line, or a JSON list.")
    return labels


def _show_progress(words: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()
