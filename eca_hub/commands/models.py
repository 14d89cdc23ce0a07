"""`eca-hub models`: list the networks that can be built."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress

if TYPE_CHECKING:
    from eca_hub.models.catalog import Network


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
    """Print what timm's registry records of weights: their id on the Hub, input, license and source."""
    import fnmatch

    import timm

    rows = []
    for name in fnmatch.filter(timm.list_pretrained(["eca_*", "ecaresnet*"]), pattern):
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.hf_hub_id:
            model_id = f"{cfg.hf_hub_id.rstrip('/')}{name}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
            rows.append(
                {
                    "model": model_id,
                    "image_size_px": cfg.input_size[-1],
                    "license": cfg.license or "not stated",
                    "source": cfg.origin_url or cfg.url or "not stated",
                }
            )
    if as_json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['model']:<44} {row['image_size_px']:>4} px  {row['license']:<12} {row['source']}")
    if rows:
        print(f"From timm {timm.__version__}'s registry. Try: eca-hub classify image.jpg --model {rows[0]['model']}")
    return 0
