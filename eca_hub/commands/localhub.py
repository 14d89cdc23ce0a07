"""`eca-hub localhub`: start a hub on this machine, check its folder, collect garbage."""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage
from eca_hub.loopback import is_loopback
from eca_hub.paths import expand_home

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from eca_hub.localhub.auth import Users


def main(argv: list[str]) -> int:
    """Run `eca-hub localhub [fsck | gc] ...`."""
    actions: dict[str, Callable[..., int]] = {"fsck": fsck, "gc": gc}
    name = argv[0] if argv and argv[0] in actions else ""
    action = actions.get(name, serve)
    parser = CommandParser(f"localhub {name}".strip(), (inspect.getdoc(action) or "").partition("\n\nArgs")[0])
    parser.add_function_arguments(action, as_group=False, skip={"public", "dry_run"})
    if action is serve:
        parser.add_argument("--public", action="store_true", help="Listen on all addresses: --host 0.0.0.0.")
    if action is gc:
        parser.add_argument("--dry_run", action="store_true", help="Only report what would be removed.")
    args = parser.read(argv[1:] if name else argv).as_dict()
    options = {name: expand_home(value) if isinstance(value, Path) else value for name, value in args.items()}
    with _translate_errors():
        return action(**options)


def serve(
    root: Path,
    port: int = 8001,
    host: str = "127.0.0.1",
    token: str | None = None,
    token_file: Path | None = None,
    users: Path | None = None,
    public: bool = False,
) -> int:
    """Start a hub that keeps everything in one folder and prints its URL when it is ready.

    Public repositories can be read without a token; writing needs one. Without --token, --token_file or --users the hub
    creates a token at its first start and keeps it in ROOT/token. `eca-hub localhub fsck --root DIR` checks a
    folder, `gc` removes what is not needed.

    Args:
        root: Folder of the hub; created if it is missing.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on; others than loopback need a token of your own.
        token: Token of the only user, the admin `local`. It is visible in the list of processes: prefer
            --token_file, or the environment variable ECA_HUB_TOKEN.
        token_file: File with that token.
        users: JSON file with several users, such as {"alice": "token-of-alice", "bob": {"token": "...", "role":
            "read"}}.
        public: Listen on all addresses, for other machines: the same as --host 0.0.0.0.
    """
    from eca_hub.localhub.app import create_app
    from eca_hub.localhub.auth import Users, read_or_create_token
    from eca_hub.localhub.server import PortTaken, listen, serve, url_of
    from eca_hub.localhub.store import Store

    host = "0.0.0.0" if public else host  # noqa: S104
    if sum(choice is not None for choice in (token, token_file, users)) > 1:
        raise InvalidUsage("--token, --token_file and --users exclude each other.", hint="Give one of them.")
    if (token, token_file, users) == (None, None, None):
        token = os.environ.get("ECA_HUB_TOKEN") or None
    if not is_loopback(host) and (token, token_file, users) == (None, None, None):
        raise InvalidUsage(
            f"{host} is open to other machines, and the hub has no token of yours.",
            hint="Give --token_file FILE or --users FILE, or set ECA_HUB_TOKEN, or --host 127.0.0.1.",
        )
    accounts = _read_users(token, token_file, users)
    try:
        server_socket = listen(host, port)
    except PortTaken as error:
        raise InvalidUsage(f"{error}.", hint="Give another --port, or 0 for a free one.") from None
    with server_socket, contextlib.closing(Store(root)) as store:
        if accounts is None:
            accounts = Users.single(read_or_create_token(root))
            token_path = root / "token"
            print(f"the token is in {token_path}; use it as: HF_TOKEN=$(cat {token_path})", file=sys.stderr)
        ready = f"local hub ready: {url_of(server_socket)} (root {root})"
        app = create_app(store, accounts, is_loopback_only=is_loopback(host))
        serve(app, server_socket, lambda: print(ready, flush=True))
    return 0


def fsck(root: Path) -> int:
    """Check every commit and every byte of every file, without changing anything; a hub may be running meanwhile.

    Args:
        root: Folder of the hub.
    """
    from eca_hub.localhub.fsck import check

    report = check(root)
    for problem in report.problems:
        print(f"damaged: {problem}")
    print(report.summary)
    return 1 if report.problems else 0


def gc(root: Path, dry_run: bool = False) -> int:
    """Remove files that no branch or tag needs. The hub must be stopped.

    Args:
        root: Folder of the hub.
        dry_run: Only report what would be removed.
    """
    from eca_hub.hub.package import is_file
    from eca_hub.localhub.fsck import collect_garbage
    from eca_hub.localhub.store import Store

    if not is_file(root / "hub.json"):
        raise InvalidUsage(f"{root} is not a hub's folder: it has no hub.json.")
    with contextlib.closing(Store(root)) as store:
        report = collect_garbage(store, dry_run)
    print(report.summary)
    return 0


@contextlib.contextmanager
def open_hub(root: str | Path, users: str | Path | None = None) -> "Iterator[ASGIApp]":
    """Open a local hub's folder as an ASGI application, to be mounted under a path of another one.

    Args:
        root: Folder of the hub; created if it is missing.
        users: JSON file with users and their tokens; without it the one token is that of ROOT/token.

    Raises:
        InvalidUsage: the folder is in use by another hub or is not a hub's, or the users file cannot be read.
    """
    from eca_hub.localhub.app import open_app

    with contextlib.ExitStack() as stack:
        with _translate_errors():
            app = stack.enter_context(open_app(expand_home(root), expand_home(users) if users else None))
        yield app


def _read_users(token: str | None, token_file: Path | None, users: Path | None) -> "Users | None":
    from eca_hub.localhub.auth import Users, is_token

    if users:
        return Users.from_file(users)
    if token_file:
        try:
            token = token_file.read_text("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "it is not text")
            raise InvalidUsage(f"The token file {token_file} cannot be read: {reason}.") from None
    if token is None:
        return None
    if not is_token(token):
        raise InvalidUsage("A token must be printable ASCII characters without a space, and at least one.")
    return Users.single(token)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn the hub's exceptions into those of eca_hub, which the hub does not import."""
    from eca_hub.localhub.auth import BadUsersFile
    from eca_hub.localhub.errors import is_disk_full
    from eca_hub.localhub.store import StoreLocked, StoreUnusable

    try:
        yield
    except (StoreLocked, StoreUnusable, BadUsersFile) as error:
        raise InvalidUsage(f"{error}.") from None
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InvalidUsage(f"There is no space left on the disk of {error.filename or 'the hub'}.") from None
