"""Faults at named moments of a hub: kill -9, an exception, or a full disk.

The moments are calls that the hub makes: renaming a file to its place, starting to write one, storing a blob,
rebuilding a file from Xet chunks. They are intercepted from outside, so the hub has no code for tests. As a program it
runs `eca_hub` with one fault: `python -m tests.localhub.faults refs.after_rename:kill localhub --root DIR`.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from eca_hub import __main__ as command_line
from eca_hub.localhub import repo as repo_module
from eca_hub.localhub import store as store_module
from eca_hub.localhub.blobs import Blobs, BlobWriter
from eca_hub.localhub.repo import Repo
from eca_hub.localhub.xorbs import Xorbs

Result = TypeVar("Result")

FAULT_POINTS = (
    "blob.before_write",
    "blob.half_written",
    "blob.before_rename",
    "blob.after_rename",
    "xorb.before_rename",
    "shard.before_rebuild",
    "shard.after_rebuild",
    "commit.before_write",
    "commit.before_rename",
    "commit.after_rename",
    "refs.before_write",
    "refs.before_rename",
    "refs.after_rename",
    "identity.before_write",
    "identity.before_rename",
    "identity.after_rename",
    "repo.before_names",
    "names.before_write",
    "names.before_rename",
    "names.after_rename",
)
"""Every moment, so that a test can walk them all."""


class Fault:
    """One fault, `POINT:kill`, `:raise`, `:enospc` or `:hang`, at the first passage, or the third: `POINT:kill:3`."""

    def __init__(self, text: str) -> None:
        self._point, self._action, nth = [*text.split(":"), "1"][:3]
        self._num_left = int(nth)
        assert self._point in FAULT_POINTS, text
        assert self._action in ("kill", "raise", "enospc", "hang"), text

    def pass_point(self, point: str) -> None:
        """Fail if this is the moment."""
        if point != self._point or self._num_left == 0:
            return
        self._num_left -= 1
        if self._num_left:
            return
        if self._action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._action == "hang":
            sys.stdout.write("hanging\n")
            sys.stdout.flush()
            threading.Event().wait()
        if self._action == "enospc":
            raise OSError(errno.ENOSPC, "No space left on device (fault injected by a test)")
        raise RuntimeError(f"fault injected by a test at {point}")


def inject(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Intercept the calls at all moments."""

    def around(owner: Any, name: str, before: str = "", after: str = "") -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if before:
                fault.pass_point(before)
            result = original(*args, **kwargs)
            if after:
                fault.pass_point(after)
            return result

        patch.setattr(owner, name, wrapper)

    around(Blobs, "writer", before="blob.before_write")
    around(BlobWriter, "writelines", after="blob.half_written")
    around(Xorbs, "rebuild", before="shard.before_rebuild", after="shard.after_rebuild")
    create: Callable[..., Repo] = Repo.create

    def create_and_pass(*args: Any) -> Repo:
        repo = create(*args)
        fault.pass_point("repo.before_names")
        return repo

    patch.setattr(Repo, "create", create_and_pass)
    for module in (repo_module, store_module):
        write_atomic = module.write_atomic

        def write(path: Path, *args: Any, _original: Callable[..., None] = write_atomic, **kwargs: Any) -> None:
            fault.pass_point(f"{_kind_of(path)}.before_write")
            _original(path, *args, **kwargs)

        patch.setattr(module, "write_atomic", write)
    replace = os.replace

    def replace_and_pass(source: Any, target: Any, **kwargs: Any) -> None:
        kind = _kind_of(Path(target))
        fault.pass_point(f"{kind}.before_rename")
        replace(source, target, **kwargs)
        fault.pass_point(f"{kind}.after_rename")

    patch.setattr(os, "replace", replace_and_pass)


def _kind_of(path: Path) -> str:
    names = {"hub.json": "identity", "names.json": "names", "refs.json": "refs", "repo.json": "settings"}
    if path.name in names:
        return names[path.name]
    if path.parent.name == "commits":
        return "commit"
    return "xorb" if "xorbs" in path.parts else "blob"


if __name__ == "__main__":
    inject(Fault(sys.argv[1]), pytest.MonkeyPatch())
    sys.exit(command_line.main(sys.argv[2:]))
