"""`eca-hub verify`: check cached files against the hashes that the hub announced."""

import json

from eca_hub.commandline import CommandParser


def main(argv: list[str]) -> int:
    """Hash the cached files; print, and with --repair remove, those that are damaged."""
    parser = CommandParser("verify", "Check the cached models against the hashes that the hub announced.")
    parser.add_argument("model_id", nargs="?", metavar="OWNER/NAME", help="One model; all when none is given.")
    parser.add_argument(
        "--repair", action="store_true", help="Remove damaged files; they are downloaded again when needed."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)

    from eca_hub.hub.pull import check_cache

    checked = list(check_cache(args.model_id))
    damaged = [each for each in checked if not each.is_intact]
    if args.repair:
        for each in damaged:
            each.path.unlink()
    if args.json:
        names = [{"model_id": each.model_id, "path": str(each.path)} for each in damaged]
        print(json.dumps({"checked": len(checked), "damaged": names, "removed": bool(args.repair and damaged)}))
    else:
        for each in damaged:
            print(f"damaged: {each.model_id}  {each.path}{'  (removed)' if args.repair else ''}")
        num_bytes = sum(each.num_bytes for each in checked)
        print(f"{len(checked)} files, {num_bytes / 2**20:.1f} MiB, {len(damaged)} damaged")
        if damaged and not args.repair:
            print("Next: eca-hub verify --repair")
    return 1 if damaged and not args.repair else 0
