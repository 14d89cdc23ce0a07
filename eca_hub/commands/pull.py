"""`eca-hub pull`: fetch a package from a hub."""

import json

from eca_hub.commandline import CommandParser


def main(argv: list[str]) -> int:
    """Fetch the files of a package into the client's cache, checked."""
    parser = CommandParser("pull", "Fetch a package from a hub and check its bytes.")
    parser.add_argument("model_id", metavar="OWNER/NAME", help="Repository on the hub.")
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.parse_args(argv)

    from eca_hub.hub.transfer import pull

    package = pull(args.model_id, args.revision)
    if args.json:
        print(json.dumps({"model_id": package.model_id, "revision": package.revision}))
        return 0
    print(f"{package.model_id} at {package.revision}: {len(package.weights_bytes) / 2**20:.2f} MiB of weights, checked")
    print(f"Try: eca-hub classify picture.png --model {package.model_id} --revision {package.revision}")
    return 0
