"""The hub as an ASGI application to be mounted under a path of another one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from starlette.types import ASGIApp

from eca_hub.localhub.app import create_app
from eca_hub.localhub.auth import Users, read_or_create_token
from eca_hub.localhub.store import Store
from eca_hub.localhub.timeouts import BodyTimeoutMiddleware


@contextlib.contextmanager
def open_app(root: Path, users: Path | None = None) -> Iterator[ASGIApp]:
    """Open a hub's folder as an ASGI application.

    Args:
        root: Folder of the hub; created if it is missing.
        users: JSON file with users and their tokens; without it the one token is that of ROOT/token.
    """
    known = Users.from_file(users) if users else None
    with contextlib.closing(Store(root)) as store:
        yield BodyTimeoutMiddleware(create_app(store, known or Users.single(read_or_create_token(root))))
