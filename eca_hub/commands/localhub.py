"""`eca-hub localhub`: start a hub on this machine, check its folder, collect garbage."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def main(argv: list[str]) -> int:
    """Run `eca-hub localhub [fsck | gc] ...`."""
    from eca_hub.localhub.cli import fsck, gc, serve

    actions: dict[str, Callable[..., int]] = {"fsck": fsck, "gc": gc}
    name = argv[0] if argv and argv[0] in actions else ""
    action = actions.get(name, serve)
    parser = CommandParser(f"localhub {name}".strip(), (action.__doc__ or "").partition("\n\n    Args")[0])
    parser.add_function_arguments(action, as_group=False, skip={"public", "dry_run"})
    if action is serve:
        parser.add_argument("--public", action="store_true", help="Listen on all addresses: --host 0.0.0.0.")
    if action is gc:
        parser.add_argument("--dry_run", action="store_true", help="Only report what would be removed.")
    options = parser.read(argv[1:] if name else argv).as_dict()
    with _translate_errors():
        return action(**options)


@contextlib.contextmanager
def open_hub(root: str | Path, users: str | Path | None = None) -> "Iterator[ASGIApp]":
    """Open a local hub's folder as an ASGI application, to be mounted under a path of another one.

    Args:
        root: Folder of the hub; created if it is missing.
        users: JSON file with users and their tokens; without it the one token is that of ROOT/token.

    Raises:
        InvalidUsage: the folder is in use by another hub or is not a hub's, or the users file cannot be read.
    """
    from eca_hub.localhub.asgi import open_app

    with contextlib.ExitStack() as stack:
        with _translate_errors():
            app = stack.enter_context(open_app(Path(root), Path(users) if users else None))
        yield app


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn the hub's exceptions into those of eca_hub, which the hub does not import."""
    from eca_hub.localhub.auth import BadUsersFile
    from eca_hub.localhub.cli import UsageError
    from eca_hub.localhub.errors import is_disk_full
    from eca_hub.localhub.store import StoreLocked, StoreUnusable

    try:
        yield
    except (UsageError, StoreLocked, StoreUnusable, BadUsersFile) as error:
        raise InvalidUsage(f"{error}.") from None
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InvalidUsage(f"There is no space left on the disk of {error.filename or 'the hub'}.") from None
