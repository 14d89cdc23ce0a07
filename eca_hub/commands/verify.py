"""`eca-hub verify`: check cached files against the hashes that the hub announced."""

import json
from pathlib import Path

from eca_hub.commandline import CommandParser

REMOVED = "removed"


def main(argv: list[str]) -> int:
    """Hash the cached files; print those that are damaged or cannot be checked, and with --repair remove the former."""
    parser = CommandParser("verify", "Check the cached models against the hashes that the hub announced.")
    parser.add_argument("model_id", nargs="?", metavar="OWNER/NAME", help="One model; all when none is given.")
    parser.add_argument(
        "--repair", action="store_true", help="Remove damaged files; they are downloaded again when needed."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)

    from eca_hub.hub.pull import NO_HASH, check_cache

    entries = list(check_cache(args.model_id))
    damaged = [each for each in entries if each.is_intact is False]
    not_checked = [each for each in entries if each.is_intact is None]
    states = {each.path: _remove(each.path) for each in damaged} if args.repair else {}
    num_left = sum(states.get(each.path) != REMOVED for each in damaged)
    if args.json:
        document = {
            "checked": len(entries) - len(not_checked),
            "damaged": [{"model_id": each.model_id, "path": str(each.path)} for each in damaged],
            "not_checked": [
                {"model_id": each.model_id, "path": str(each.path), "reason": each.reason} for each in not_checked
            ],
            "removed": bool(damaged) and num_left == 0,
        }
        print(json.dumps(document))
    else:
        for each in damaged:
            state = f"  ({states[each.path]})" if each.path in states else ""
            print(f"damaged: {each.model_id}  {each.path}{state}")
        for each in not_checked:
            print(
                "  ".join(filter(None, [f"not checked: {each.model_id}".strip(), f"{each.path}", f"({each.reason})"]))
            )
        num_bytes = sum(each.num_bytes for each in entries)
        unknown = f", {len(not_checked)} not checked" if not_checked else ""
        print(f"{len(entries)} files, {num_bytes / 2**20:.1f} MiB, {len(damaged)} damaged{unknown}")
        if damaged and not args.repair:
            print("Next: eca-hub verify --repair")
    return 1 if num_left or any(each.reason != NO_HASH for each in not_checked) else 0


def _remove(path: Path) -> str:
    """Remove a file; return what to print about it."""
    try:
        path.unlink()
    except OSError as error:
        return f"not removed: {error.strerror or error}"
    return REMOVED
