"""`eca-hub models`: list the networks that can be built."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress

if TYPE_CHECKING:
    from eca_hub.models.catalog import Accuracy, Network


def main(argv: list[str]) -> int:
    """Print the names that `create_model` takes, with their parameters."""
    parser = CommandParser("models", "List the networks that can be built, with their parameters for 1000 classes.")
    parser.add_argument("pattern", nargs="?", default="*", help="Shell-style, such as 'eca*' or '*resnet18'.")
    parser.add_argument(
        "--timm", action="store_true", help="Also list timm's networks with attention; a minute for all."
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="List timm's networks with ECA that have ImageNet weights on the Hub."
    )
    parser.add_argument("--json", action="store_true", help="Print a JSON list.")
    args = parser.read(argv)

    if args.pretrained:
        return _print_pretrained(args.pattern, as_json=args.json)

    from eca_hub.models.catalog import networks, timm_networks

    found = networks(args.pattern)
    if args.timm:
        found = chain(found, timm_networks(args.pattern))
    if args.json:
        print(json.dumps([asdict(network) for network in _with_progress(found)]))
        return 0
    num_found = 0
    for network in found:
        num_found += 1
        added = f"   {network.attention_parameters:+,} for attention" if network.attention != "none" else ""
        print(f"{network.name:<28} {network.parameters:>12,}{added}")
    if not num_found:
        print(f"No network matches {args.pattern!r}. All names: eca-hub models; timm's as well: eca-hub models --timm")
    elif args.timm:
        print("Each of timm's names can be prefixed with an attention: eca_seresnext50_32x4d, for example.")
    return 0


def _with_progress(found: "Iterator[Network]") -> "Iterator[Network]":
    """Show on a terminal which network is being counted."""
    for network in found:
        show_progress(network.name)
        yield network
    show_progress("")


def _print_pretrained(pattern: str, *, as_json: bool) -> int:
    """Print timm's weights with ECA: size, published accuracy for each image size, license."""
    import timm

    from eca_hub.models.catalog import published_weights

    found = published_weights(pattern)
    if as_json:
        print(json.dumps([asdict(weights) for weights in found]))
        return 0
    if not found:
        print(f"No weights match {pattern!r}. All of them: eca-hub models --pretrained")
        return 0
    print(f"{'model':<37} {'params':>8}  {'px':>4} {'top-1':>6} {'top-5':>6}   license")
    for weights in found:
        name, millions = weights.model, weights.parameters_millions
        size = "" if millions is None else f"{millions:.2f} M"
        for row in weights.accuracies or (None,):
            figures = f"{weights.image_size_px:>4}" if row is None else _figures(row)
            print(f"{name:<37} {size:>8}  {figures:<18}   {weights.license}")
            name = size = ""
    print(f"Weights of timm {timm.__version__}; top-1 and top-5 in percent on ImageNet's validation set, as published.")
    print(f"Try: eca-hub classify image.jpg --model {found[0].model}")
    return 0


def _figures(row: "Accuracy") -> str:
    return f"{row.image_size_px:>4} {row.top1:>6.2f} {row.top5:>6.2f}"
