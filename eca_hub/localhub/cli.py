"""Commands of an operator: start a hub, check its folder, collect garbage."""

import contextlib
import ipaddress
import os
import sys
from pathlib import Path

from eca_hub.localhub.auth import Users, is_token, read_or_create_token
from eca_hub.localhub.store import Store


class UsageError(Exception):
    """A user error; the message says how to correct it."""


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

    Public repositories can be read without a token; writing needs one. Without --token, --token-file or --users the hub
    creates a token at its first start and keeps it in ROOT/token. `eca-hub localhub fsck --root DIR` checks a
    folder, `gc` removes what is not needed.

    Args:
        root: Folder of the hub; created if it is missing.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on; others than loopback need a token of your own.
        token: Token of the only user, the admin `local`. It is visible in the list of processes: prefer
            --token-file, or the environment variable ECA_HUB_TOKEN.
        token_file: File with that token.
        users: JSON file with several users, such as {"alice": "token-of-alice", "bob": {"token": "...", "role":
            "read"}}.
        public: Listen on all addresses, for other machines: the same as --host 0.0.0.0.
    """
    # Imported here: fsck, gc and errors in options need no web framework.
    from eca_hub.localhub.app import create_app
    from eca_hub.localhub.server import PortTaken, listen, serve, url_of

    host = "0.0.0.0" if public else host  # noqa: S104
    if sum(choice is not None for choice in (token, token_file, users)) > 1:
        raise UsageError("--token, --token-file and --users exclude each other: give one of them")
    if (token, token_file, users) == (None, None, None):
        token = os.environ.get("ECA_HUB_TOKEN") or None
    if not _is_loopback(host) and (token, token_file, users) == (None, None, None):
        raise UsageError(
            f"{host} is open to other machines: give --token-file FILE or --users FILE, or set ECA_HUB_TOKEN, "
            "or --host 127.0.0.1"
        )
    known = _read_users(token, token_file, users)
    try:
        server_socket = listen(host, port)
    except PortTaken as error:
        raise UsageError(f"{error}; give another --port, or 0 for a free one") from None
    with server_socket, contextlib.closing(Store(root)) as store:
        if known is None:
            known = Users.single(read_or_create_token(root))
            where = root / "token"
            print(f"the token is in {where}; use it as: HF_TOKEN=$(cat {where})", file=sys.stderr)
        ready = f"local hub ready: {url_of(server_socket)} (root {root})"
        serve(create_app(store, known), server_socket, lambda: print(ready, flush=True))
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
    from eca_hub.localhub.fsck import collect_garbage

    if not (root / "hub.json").is_file():
        raise UsageError(f"{root} is not a hub's folder: it has no hub.json")
    with contextlib.closing(Store(root)) as store:
        report = collect_garbage(store, dry_run)
    print(report.summary)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_users(token: str | None, token_file: Path | None, users: Path | None) -> Users | None:
    if users:
        return Users.from_file(users)
    if token_file:
        try:
            token = token_file.read_text("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the token file {token_file} cannot be read: {getattr(error, 'strerror', 'it is not text')}"
            ) from None
    if token is None:
        return None
    if not is_token(token):
        raise UsageError("a token must be printable ASCII characters without a space, and at least one")
    return Users.single(token)
