"""`eca-hub pull`: download a package from a hub."""

import json
from pathlib import Path

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage


def main(argv: list[str]) -> int:
    """Download the files of a package into the client's cache or a folder, and check them; copy one of this disk."""
    parser = CommandParser("pull", "Download a package from a hub and check its bytes.")
    parser.add_argument(
        "model_id",
        metavar="OWNER/NAME",
        help="Repository on the hub; also owner/name@revision, a folder, or a model that is part of eca-hub.",
    )
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--to", metavar="DIR", help="New folder to copy the package to.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    if args.to == "":
        raise InvalidUsage("--to is empty.", hint="Give a new folder, or leave it out.")

    from eca_hub.hub.client import parse_model_id
    from eca_hub.hub.package import CARD_FILE, CONFIG_FILE, command_for
    from eca_hub.hub.pull import is_local, pull, pull_to
    from eca_hub.paths import expand_home

    # Before the copy is made, which may be a folder of the model's name.
    from_disk = is_local(args.model_id)
    if args.to:
        args.to = str(expand_home(args.to))
        commit = pull_to(args.model_id, args.to, args.revision)
        model_id = args.model_id if from_disk else parse_model_id(args.model_id)[0]
        config_bytes = Path(args.to, CONFIG_FILE).read_bytes()
    else:
        package = pull(args.model_id, args.revision)
        model_id, commit, config_bytes = package.model_id, package.revision, package.config_bytes
    if args.json:
        print(json.dumps({"model_id": model_id, "revision": commit, "folder": args.to}))
        return 0
    if from_disk:
        print(
            f"{model_id} at {commit}, {f'copied to {args.to}' if args.to else 'on this machine: nothing to download'}"
        )
    else:
        print(f"{model_id} at {commit}, checked{f', in {args.to}' if args.to else ''}")
    if args.to and not Path(args.to, CARD_FILE).is_file():
        reason = "the repository has none, or the cache has none and the hub does not respond"
        print(f"It has no {CARD_FILE}{'' if from_disk else f': {reason}'}.")
    model = args.to or (model_id if from_disk else f"{model_id}@{commit}")
    print(f"Try: eca-hub {command_for(config_bytes)} image.png --model {model}")
    return 0
