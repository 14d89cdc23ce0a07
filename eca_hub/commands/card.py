"""`eca-hub card`: show the model card of a package as the Hub will read it."""

from pathlib import Path

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidConfig


def main(argv: list[str]) -> int:
    """Print the card and check its metadata with the client's own reader."""
    parser = CommandParser("card", "Show the model card of a run or a package, and check its metadata.")
    parser.add_argument("folder", metavar="RUN_OR_FOLDER", help="A run folder, or a folder with a package.")
    args = parser.read(argv)

    import yaml
    from huggingface_hub import ModelCard

    from eca_hub.hub.package import CARD_FILE, find_package

    path: Path = find_package(args.folder) / CARD_FILE
    text = path.read_text(encoding="utf-8")
    try:
        data = yaml.safe_load(str(ModelCard(text).data))
    except Exception as error:
        # The reader passes on whatever its YAML library raises.
        reason = " ".join(str(error).split())
        raise InvalidConfig(f"The metadata of {path} cannot be read: {reason}.") from None
    print(text)
    print(f"The metadata is readable: {', '.join(data)}. Next: eca-hub push {args.folder} OWNER/NAME")
    return 0
