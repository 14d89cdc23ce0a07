"""What an operator does with a hub: start it, check its folder, clean it up. Knows nothing of how options are typed."""

import contextlib
import ipaddress
import os
import secrets
import sys
from pathlib import Path

from eca_hub.localhub.auth import Users, is_token
from eca_hub.localhub.store import Store


class Mistake(Exception):
    """Something that the user can put right; the message says how."""


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

    Anybody who reaches it may read public repositories; writing needs a token. Without --token, --token-file or --users
    the hub makes a token at its first start and keeps it in ROOT/token. `eca-hub localhub fsck --root DIR` checks a
    folder, `gc` cleans it.

    Args:
        root: Folder of the hub; made if it is missing.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on; others than loopback need a token that you choose.
        token: Token of the one user, `local`, who may do everything. Others can see it in the list of processes: prefer
            --token-file, or the environment variable ECA_HUB_TOKEN.
        token_file: File with that token.
        users: JSON file with several users, such as {"alice": "token-of-alice", "bob": {"token": "...", "role":
            "read"}}.
        public: Listen on all addresses, for other machines: the same as --host 0.0.0.0.
    """
    # Imported here so that fsck and gc, and a mistake in an option, do not wait for the web framework.
    from eca_hub.localhub.app import create_app
    from eca_hub.localhub.server import PortTaken, listen, serve, url_of

    host = "0.0.0.0" if public else host  # noqa: S104
    if sum(choice is not None for choice in (token, token_file, users)) > 1:
        raise Mistake("--token, --token-file and --users exclude each other: give one of them")
    if (token, token_file, users) == (None, None, None):
        token = os.environ.get("ECA_HUB_TOKEN") or None
    if not _is_loopback(host) and (token, token_file, users) == (None, None, None):
        raise Mistake(
            f"{host} is open to other machines: give --token-file FILE or --users FILE, or set ECA_HUB_TOKEN, "
            "or --host 127.0.0.1"
        )
    known = _read_users(token, token_file, users)
    try:
        server_socket = listen(host, port)
    except PortTaken as error:
        raise Mistake(f"{error}; give another --port, or 0 for a free one") from None
    with server_socket, contextlib.closing(Store(root)) as store:
        if known is None:
            known = Users.single(own_token(root))
            where = root / "token"
            print(f"the token lies in {where}; use it as: HF_TOKEN=$(cat {where})", file=sys.stderr)
        ready = f"local hub ready: {url_of(server_socket)} (root {root})"
        serve(create_app(store, known), server_socket, lambda: print(ready, flush=True))
    return 0


def fsck(root: Path) -> int:
    """Check every commit and every byte of every file, without changing anything; a hub may be running meanwhile.

    Args:
        root: Folder of the hub.
    """
    from eca_hub.localhub.fsck import check

    if not (root / "hub.json").is_file():
        raise Mistake(f"{root} is not a hub's folder: it has no hub.json")
    report = check(root)
    for problem in report.problems:
        print(f"damaged: {problem}")
    print(report.summary)
    return 1 if report.problems else 0


def gc(root: Path, dry_run: bool = False) -> int:
    """Remove what no branch, tag or pull request needs any longer. The hub must be stopped.

    Args:
        root: Folder of the hub.
        dry_run: Only say what would be removed.
    """
    from eca_hub.localhub.fsck import collect_garbage

    if not (root / "hub.json").is_file():
        raise Mistake(f"{root} is not a hub's folder: it has no hub.json")
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
            token = token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Mistake(
                f"the token file {token_file} cannot be read: {getattr(error, 'strerror', 'it is not text')}"
            ) from None
    if token is None:
        return None
    if not is_token(token):
        raise Mistake("a token must be printable ASCII characters without a space, and at least one")
    return Users.single(token)


def own_token(root: Path) -> str:
    """Return the token that a hub made for itself at its first start."""
    path = root / "token"
    with contextlib.suppress(FileNotFoundError):
        token = path.read_text().strip()
        if is_token(token):
            return token
    token = f"local_{secrets.token_hex(20)}"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token
