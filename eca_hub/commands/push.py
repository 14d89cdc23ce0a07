"""`eca-hub push`: publish a run or a package to a hub."""

import json
from dataclasses import asdict

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage, UnknownName
from eca_hub.releases import DEFAULT_RELEASE, list_releases


def main(argv: list[str]) -> int:
    """Publish the files of a package in one commit."""
    parser = CommandParser(
        "push",
        "Publish a run or a package to a hub, in one commit.",
        examples=["eca-hub push runs/mine acme/mine", f"eca-hub push --release {DEFAULT_RELEASE} acme/photos"],
    )
    parser.add_argument("folder", nargs="?", metavar="RUN_OR_FOLDER", help="A run folder, or a folder with a package.")
    parser.add_argument("model_id", metavar="OWNER/NAME", help="Repository on the hub; made if it does not exist.")
    parser.add_argument(
        "--release", metavar="NAME", help="Publish a model that is part of eca-hub; see `eca-hub models`."
    )
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--public", action="store_true", help="Refuse to publish to a private repository.")
    parser.add_argument("--branch", default="main", help="Branch for the commit; made if it does not exist.")
    parser.add_argument("--tag", help="Tag for the commit, such as v1; tags do not move.")
    parser.add_argument("--message", help="Title of the commit.")
    parser.add_argument("--license", help="License of the weights for the model card, such as apache-2.0.")
    parser.add_argument("--dry_run", action="store_true", help="Show what would be sent; send nothing.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    if args.private and args.public:
        raise InvalidUsage("--private and --public exclude each other.")

    folder = _folder(args.folder, args.release)

    from eca_hub.hub.package import CONFIG_FILE, command_for, find_package
    from eca_hub.hub.pretrained import check_package
    from eca_hub.hub.push import push_folder
    from eca_hub.hub.push_files import check_names, plan_push

    check_names(args.model_id, args.branch, args.tag)
    check_package(folder)
    if args.dry_run or not args.json:
        plan = plan_push(folder, args.model_id, branch=args.branch, tag=args.tag, license=args.license)
        if not args.json:
            for each in plan:
                state = "deleted" if each.is_deleted else "" if each.is_changed else "unchanged"
                print(f"  {each.name:<18} {_size(each.num_bytes):>10}  {state}".rstrip())
        if args.dry_run:
            document = {"model_id": args.model_id, "branch": args.branch, "files": [asdict(each) for each in plan]}
            print(json.dumps(document) if args.json else f"Nothing was sent to {args.model_id} (dry run).")
            return 0
    published = push_folder(
        folder,
        args.model_id,
        private=True if args.private else False if args.public else None,
        branch=args.branch,
        tag=args.tag,
        message=args.message,
        license=args.license,
    )
    if args.json:
        print(json.dumps(asdict(published)))
        return 0
    print(f"{'published as' if published.is_new else 'already published as'} {published.revision}  {published.url}")
    command = command_for((find_package(folder) / CONFIG_FILE).read_bytes())
    print(f"Try: eca-hub {command} image.png --model {published.model_id}")
    return 0


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def _folder(given: str | None, release: str | None) -> str:
    """Return the package to publish: the folder given, or a release."""
    if release is None:
        if given is None:
            raise InvalidUsage("No package is given.", hint="Type RUN_OR_FOLDER before OWNER/NAME, or --release NAME.")
        return given
    if given is not None:
        raise InvalidUsage(f"{given} and --release {release} exclude each other.", hint="Give one of both.")
    names = list_releases()
    if release not in names:
        raise UnknownName.among("release", release, names, listing=", ".join(names))
    return release
