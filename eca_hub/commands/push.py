"""`eca-hub push`: publish a run or a package to a hub."""

import json
from dataclasses import asdict

from eca_hub.commandline import CommandParser


def main(argv: list[str]) -> int:
    """Publish the three files of a package in one commit."""
    parser = CommandParser("push", "Publish a run or a package to a hub, in one commit.")
    parser.add_argument("folder", metavar="RUN_OR_FOLDER", help="A run folder, or a folder with a package.")
    parser.add_argument("model_id", metavar="OWNER/NAME", help="Repository on the hub; made if it does not exist.")
    parser.add_argument("--private", action="store_true", help="Hide a new repository from others.")
    parser.add_argument("--message", help="Title of the commit.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.parse_args(argv)

    from eca_hub.hub.package import FILES, find_package
    from eca_hub.hub.transfer import push_to_hub

    path = find_package(args.folder)
    if not args.json:
        sizes = "  ".join(f"{name} ({(path / name).stat().st_size / 2**20:.2f} MiB)" for name in FILES)
        print(f"{sizes}  ->  {args.model_id}")
    published = push_to_hub(path, args.model_id, private=args.private or None, message=args.message)
    if args.json:
        print(json.dumps(asdict(published)))
        return 0
    print(f"{'published as' if published.is_new else 'already there as'} {published.revision}  {published.url}")
    print(f"Try: eca-hub classify picture.png --model {published.model_id}")
    return 0
