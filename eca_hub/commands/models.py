"""`eca-hub models`: list the trained models of this package and the networks that can be built."""

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidUsage
from eca_hub.releases import RELEASES, release_folder

if TYPE_CHECKING:
    from eca_hub.models.catalog import Accuracy, Network


def main(argv: list[str]) -> int:
    """Print the releases, and the names that `create_model` takes, with their parameters."""
    parser = CommandParser(
        "models",
        "List the trained models that are part of eca-hub, and the networks that can be built, with their parameters "
        "for 1000 classes.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="Shell-style, such as 'eca*' or '*resnet18'.")
    parser.add_argument(
        "--timm", action="store_true", help="Also list timm's networks with attention; a minute for all."
    )
    parser.add_argument(
        "--releases", action="store_true", help="List only the trained models that are part of eca-hub."
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="List timm's networks with ECA that have ImageNet weights on the Hub."
    )
    parser.add_argument("--json", action="store_true", help="Print a JSON list, trained models first.")
    args = parser.read(argv)

    chosen = [f"--{name}" for name in ("timm", "releases", "pretrained") if args[name]]
    if len(chosen) > 1:
        raise InvalidUsage(f"{' and '.join(chosen)} exclude each other.", hint="Give one of them.")
    if args.pretrained:
        return _print_pretrained(args.pattern, as_json=args.json)

    releases = _releases(args.pattern)
    if args.releases:
        none = f"No release matches {args.pattern!r}. All of them: eca-hub models --releases"
        print(json.dumps(releases) if args.json else "\n".join(map(_release_line, releases)) or none)
        return 0

    from eca_hub.models.catalog import networks, timm_networks

    matches = networks(args.pattern)
    if args.timm:
        matches = chain(matches, timm_networks(args.pattern))
    if args.json:
        print(json.dumps([*releases, *(asdict(network) for network in _with_progress(matches))]))
        return 0
    if releases:
        print("Trained, and part of eca-hub; --model NAME loads them without a hub:")
        print("\n".join(map(_release_line, releases)))
        print("\nNetworks that can be built and trained:")
    num_networks = 0
    for network in matches:
        num_networks += 1
        added = f"   {network.attention_parameters:+,} for attention" if network.attention != "none" else ""
        print(f"{network.name:<28} {network.parameters:>12,}{added}")
    if not num_networks and not releases:
        print(f"No network matches {args.pattern!r}. All names: eca-hub models; timm's as well: eca-hub models --timm")
    elif args.timm:
        print("Each of timm's names can be prefixed with an attention: eca_seresnext50_32x4d, for example.")
    return 0


def _releases(pattern: str) -> list[dict[str, Any]]:
    """Read what the configurations and the cards of the releases state."""
    from eca_hub.hub.card.edit import read_metadata
    from eca_hub.hub.package import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, config_from_json

    rows = []
    for name in fnmatch.filter(RELEASES, pattern):
        folder = release_folder(name)
        assert folder is not None
        config = config_from_json((folder / CONFIG_FILE).read_bytes(), origin=name)
        metadata = read_metadata((folder / CARD_FILE).read_bytes())
        metrics = {each["type"]: each["value"] for each in metadata["model-index"][0]["results"][0]["metrics"]}
        rows.append(
            {
                "name": name,
                "architecture": config.architecture,
                "attention": config.attention,
                "classes": config.num_classes,
                "about": RELEASES[name],
                "image_size_px": config.image.height_px,
                "test_accuracy": metrics["accuracy"],
                "license": metadata["license"],
                "num_bytes": (folder / WEIGHTS_FILE).stat().st_size,
            }
        )
    return rows


def _release_line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:<28} {row['about']}; {row['image_size_px']} px, test accuracy {row['test_accuracy']:.3f}, "
        f"{row['num_bytes'] / 2**20:.1f} MiB, license {row['license']}"
    )


def _with_progress(networks: "Iterator[Network]") -> "Iterator[Network]":
    """Show on a terminal which network is being counted."""
    for network in networks:
        show_progress(network.name)
        yield network
    show_progress("")


def _print_pretrained(pattern: str, *, as_json: bool) -> int:
    """Print timm's weights with ECA: size, published accuracy for each image size, license."""
    import timm

    from eca_hub.models.catalog import published_weights

    published = published_weights(pattern)
    if as_json:
        print(json.dumps([asdict(weights) for weights in published]))
        return 0
    if not published:
        print(f"No weights match {pattern!r}. All of them: eca-hub models --pretrained")
        return 0
    print(f"{'model':<37} {'params':>8}  {'px':>4} {'top-1':>6} {'top-5':>6}   license")
    for weights in published:
        name, millions = weights.model, weights.parameters_millions
        size = "" if millions is None else f"{millions:.2f} M"
        for row in weights.accuracies or (None,):
            figures = f"{weights.image_size_px:>4}" if row is None else _figures(row)
            print(f"{name:<37} {size:>8}  {figures:<18}   {weights.license}")
            name = size = ""
    print(f"Weights of timm {timm.__version__}; top-1 and top-5 in percent on ImageNet's validation set, as published.")
    print(f"Try: eca-hub classify image.jpg --model {published[0].model}")
    return 0


def _figures(row: "Accuracy") -> str:
    return f"{row.image_size_px:>4} {row.top1:>6.2f} {row.top5:>6.2f}"
