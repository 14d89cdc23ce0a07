"""`eca-hub localhub`: start a hub on this machine, check its folder, clean it up."""

from collections.abc import Callable

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage


def main(argv: list[str]) -> int:
    """Run `eca-hub localhub [fsck | gc] ...`."""
    from eca_hub.localhub.errors import is_disk_full
    from eca_hub.localhub.run import Mistake, fsck, gc, serve
    from eca_hub.localhub.store import StoreLocked, StoreUnusable
    from eca_hub.localhub.users import BadUsersFile

    actions: dict[str, Callable[..., int]] = {"fsck": fsck, "gc": gc}
    name = argv[0] if argv and argv[0] in actions else ""
    action = actions.get(name, serve)
    parser = CommandParser(f"localhub {name}".strip(), (action.__doc__ or "").partition("\n\n    Args")[0])
    parser.add_function_arguments(action, as_group=False, skip={"public", "dry_run"})
    if action is serve:
        parser.add_argument("--public", action="store_true", help="Listen on all addresses: --host 0.0.0.0.")
    if action is gc:
        parser.add_argument("--dry_run", action="store_true", help="Only say what would be removed.")
    options = parser.read(argv[1:] if name else argv).as_dict()
    try:
        return action(**options)
    except (Mistake, StoreLocked, StoreUnusable, BadUsersFile) as error:
        raise InvalidUsage(f"{error}.") from None
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InvalidUsage(f"There is no space left on the disk of {error.filename or 'the hub'}.") from None
