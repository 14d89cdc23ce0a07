"""`eca-hub card`: show the model card of a package and check its metadata."""

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidConfig


def main(argv: list[str]) -> int:
    """Print the card, after a check that its metadata can be read."""
    parser = CommandParser("card", "Show the model card of a run or a package, and check its metadata.")
    parser.add_argument("folder", metavar="RUN_OR_FOLDER", help="A run folder, a folder with a package, or a release.")
    args = parser.read(argv)

    from eca_hub.hub.card.edit import read_metadata
    from eca_hub.hub.package import CARD_FILE, find_package, is_file, read_file

    path = find_package(args.folder) / CARD_FILE
    if not is_file(path):
        raise InvalidConfig(f"{path.parent} has no model card {CARD_FILE}.", hint="eca-hub push adds one.")
    card = read_file(path)
    metadata = read_metadata(card)
    print(card.decode("utf-8-sig"))
    status = (
        f"is readable: {', '.join(map(str, metadata))}" if metadata else "is empty: nothing stands between --- lines"
    )
    print(f"The metadata {status}. Next: eca-hub push {args.folder} OWNER/NAME")
    return 0
