"""`eca-hub convert`: weights of ECANet, torchvision, timm and mmdetection to packages, and packages to stock timm."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidConfig, InvalidPackage, InvalidUsage
from eca_hub.models.config import CropMode, Interpolation

if TYPE_CHECKING:
    from torch import nn

    from eca_hub.hub.package import Package
    from eca_hub.models.config import ModelConfig
    from eca_hub.models.detector_config import DetectorConfig

_NOT_ITS_AP = "Its average precision is not that of mmdetection, whose anchors and regions differ: measure it again."


def main(argv: list[str]) -> int:
    """Read a checkpoint or a package, write a folder, and print what was written."""
    parser = CommandParser(
        "convert",
        "Convert weights of ECANet, torchvision, timm or mmdetection to a package, or a package to stock timm.",
    )
    parser.add_argument(
        "source",
        metavar="FILE",
        help="A checkpoint (.pth.tar, .pth, .pt, .safetensors); with --format timm also a package or OWNER/NAME.",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="Where to write; a new or empty folder.")
    parser.add_argument("--architecture", help="Such as eca_resnet50, or any name of timm; detected if not given.")
    parser.add_argument("--labels", help="A text file with one class name on each line, or a .json list.")
    group = parser.add_argument_group("Preprocessing, where it differs from the authors' validation")
    group.add_argument("--image.height_px", type=int)
    group.add_argument("--image.width_px", type=int)
    group.add_argument("--image.crop", type=float, help="Share of the resized image that is kept.")
    group.add_argument("--image.crop_mode", choices=get_args(CropMode))
    group.add_argument("--image.interpolation", choices=get_args(Interpolation))
    group.add_argument("--image.mean", type=float, nargs=3, metavar="MEAN", help="Mean of each color; white is 1.")
    group.add_argument("--image.std", type=float, nargs=3, metavar="STD")
    parser.add_argument("--format", choices=["eca-hub", "timm"], default="eca-hub", help="Format of the folder.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    if not args.to:
        raise InvalidUsage("--to is empty.", hint="Give a new folder.")

    from eca_hub.hub.package import check_new_folder, is_file
    from eca_hub.paths import expand_home

    args.to = str(expand_home(args.to))
    labels = None if args.labels is None else _read_labels(expand_home(args.labels))
    is_checkpoint = is_file(expand_home(args.source))
    if is_checkpoint:
        args.source = str(expand_home(args.source))
    if not is_checkpoint and args.format == "eca-hub":
        raise InvalidUsage(
            f"There is no file {args.source!r}.", hint="Give a checkpoint, such as eca_resnet50.pth.tar."
        )
    image = {name: value for name, value in vars(args.image).items() if value is not None}
    if not is_checkpoint and (labels is not None or args.architecture or image):
        raise InvalidUsage("A package has its own architecture, labels and preprocessing; leave those options out.")

    from eca_hub.hub.convert.architecture import check_architecture
    from eca_hub.hub.convert.checkpoint import convert_checkpoint, convert_detector
    from eca_hub.hub.convert.checkpoint_reader import read_checkpoint
    from eca_hub.hub.convert.mmdetection import is_mmdetection

    check_new_folder(args.to)
    if args.architecture is not None:
        check_architecture(args.architecture)
    show_progress(f"reading {args.source}")
    if args.format == "eca-hub":
        checkpoint = read_checkpoint(args.source)
        if is_mmdetection(checkpoint.weights):
            if args.architecture or image:
                raise InvalidUsage("A detector has its own architecture and preprocessing; leave those options out.")
            detector, detector_config = convert_detector(checkpoint, args.to, labels=labels)
            show_progress("")
            _report_detector(detector, detector_config, args.to, as_json=args.json)
            return 0
        model, config = convert_checkpoint(
            checkpoint, args.to, architecture=args.architecture, labels=labels, image=image
        )
    else:
        from eca_hub.hub.card.edit import license_facts
        from eca_hub.hub.convert.checkpoint import card_facts
        from eca_hub.hub.pretrained import export_to_timm, read_package
        from eca_hub.hub.pull import pull

        if is_checkpoint:
            model, config = convert_checkpoint(args.source, architecture=args.architecture, labels=labels, image=image)
            facts = card_facts(args.source, config)
        else:
            package = pull(args.source)
            model, config = read_package(package)
            facts = license_facts(_read_card(args.source, package), package.config_bytes)
        show_progress(f"writing {args.to}")
        export_to_timm(model, args.to, config=config, facts=facts)
    show_progress("")
    _report(model, config, args.to, args.format, as_json=args.json)
    return 0


def _read_card(source: str, package: "Package") -> bytes:
    """Return the card of the revision that was pulled; empty if a folder has none that can be read."""
    from eca_hub.hub.client import HUB_PREFIXES
    from eca_hub.hub.pull import is_local, read_card

    try:
        return read_card(source if is_local(source) else f"{HUB_PREFIXES[0]}{package.model_id}@{package.revision}")
    except InvalidPackage as error:
        show_progress("")
        print(f"{error} A license stated there is not used.", file=sys.stderr)
        return b""


def _report(model: "nn.Module", config: "ModelConfig", folder: str, written_for: str, *, as_json: bool) -> None:
    facts = {"folder": folder, "format": written_for, "architecture": config.architecture}
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    options = ", ".join(f"{key} = {value}" for key, value in config.attention_args.items())
    next_step = f"eca-hub classify image.jpg --model {folder}"
    if written_for == "timm":
        next_step = f"python -c 'import timm; timm.create_model(\"local-dir:{folder}\", pretrained=True)'"
    _print_report(model, config, facts, f"{name} ({options})" if options else name, next_step, as_json=as_json)


def _report_detector(model: "nn.Module", config: "DetectorConfig", folder: str, *, as_json: bool) -> None:
    facts = {"folder": folder, "format": "eca-hub", "detector": config.detector, "backbone": config.backbone}
    _print_report(
        model, config, facts, config.name, f"eca-hub detect image.jpg --model {folder}", _NOT_ITS_AP, as_json=as_json
    )


def _print_report(
    model: "nn.Module",
    config: "ModelConfig | DetectorConfig",
    facts: dict[str, Any],
    name: str,
    next_step: str,
    note: str = "",
    *,
    as_json: bool,
) -> None:
    from eca_hub.models.build import count_parameters

    num_parameters, num_classes = count_parameters(model), config.num_classes
    if as_json:
        common = {"attention": config.attention, "attention_args": dict(config.attention_args)}
        print(json.dumps({**facts, **common, "num_classes": num_classes, "parameters": num_parameters}))
        return
    print(f"{name}: {num_parameters:,} parameters, {num_classes} classes, written to {facts['folder']}")
    if note:
        print(note)
    print(f"Try: {next_step}")


def _read_labels(path: Path) -> list[str]:
    from eca_hub.hub.package import is_file

    if not is_file(path):
        raise InvalidConfig(
            f"There is no label file {str(path)!r}.", hint="One class name on each line, or a JSON list."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        labels = (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (ValueError, RecursionError):
        raise InvalidConfig(f"{path} is neither UTF-8 text nor JSON.") from None
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror or error}.") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or not labels:
        raise InvalidConfig(f"{path} has no list of names.", hint="One class name on each line, or a JSON list.")
    return labels
