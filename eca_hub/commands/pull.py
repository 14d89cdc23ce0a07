"""`eca-hub pull`: download a package from a hub."""

import json

from eca_hub.commandline import CommandParser


def main(argv: list[str]) -> int:
    """Download the files of a package into the client's cache or a folder, and check them."""
    parser = CommandParser("pull", "Download a package from a hub and check its bytes.")
    parser.add_argument("model_id", metavar="OWNER/NAME", help="Repository on the hub; also owner/name@revision.")
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--to", metavar="DIR", help="New folder to copy the package to.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)

    from eca_hub.hub.pull import pull, pull_to

    if args.to:
        commit, model = pull_to(args.model_id, args.to, args.revision), args.to
    else:
        commit, model = pull(args.model_id, args.revision).revision, f"{args.model_id} --revision "
        model += commit
    if args.json:
        print(json.dumps({"model_id": args.model_id, "revision": commit, "folder": args.to}))
        return 0
    print(f"{args.model_id} at {commit}, checked{f', in {args.to}' if args.to else ''}")
    print(f"Try: eca-hub classify image.png --model {model}")
    return 0
