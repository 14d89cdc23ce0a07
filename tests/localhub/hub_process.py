"""A local hub as a process of its own, or opened in the process of the test."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from starlette.testclient import TestClient

from eca_hub.localhub import Store, Users, create_app

STOP_S = 10


@dataclass
class Hub:
    """A running hub."""

    url: str
    token: str
    root: Path
    process: subprocess.Popen[str]


@contextlib.contextmanager
def client_of(hub: Hub, token: str | None = None) -> Iterator[httpx2.Client]:
    """Plain requests to a running hub with a token; default: the hub's own."""
    headers = {"Authorization": f"Bearer {token or hub.token}"}
    # Without certificates, which no loopback needs: reading them takes 60 ms of the processor.
    with httpx2.Client(base_url=hub.url, headers=headers, timeout=30, verify=False) as client:
        yield client


@contextlib.contextmanager
def opened_hub(root: Path, users: Users | None = None, token: str = "local-token") -> Iterator[TestClient]:
    """Open a hub's folder in this process, which is faster than a new one."""
    store = Store(root)
    with contextlib.closing(store):
        app = create_app(store, users or Users.single("local-token"))
        headers = {"Authorization": f"Bearer {token}"}
        yield TestClient(app, "http://127.0.0.1:1234", raise_server_exceptions=False, headers=headers)


@contextlib.contextmanager
def running_hub(
    root: Path, *, users: dict[str, object] | None = None, fault: str | None = None, options: tuple[str, ...] = ()
) -> Iterator[Hub]:
    """Start a hub on a free port of the loopback and stop it afterwards, whatever happened.

    Args:
        root: Its folder.
        users: Users with their tokens; the hub's token is then the first user's.
        fault: A fault to inject, such as `refs.after_rename:kill`: see faults.py.
        options: Further options of `eca-hub localhub`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if users:
            users_file = Path(folder) / "users.json"
            users_file.write_text(json.dumps(users))
            options += ("--users", str(users_file))
        program = ["tests.localhub.faults", fault] if fault else ["eca_hub"]
        command = [sys.executable, "-m", *program, "localhub", "--root", str(root), "--port", "0", *options]
        errors = Path(folder) / "stderr"
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("local hub ready: http://"), line + errors.read_text()
                if users:
                    first = next(iter(users.values()))
                    token = first["token"] if isinstance(first, dict) else str(first)
                elif (root / "token").exists():
                    token = (root / "token").read_text().strip()
                else:
                    token = ""
                yield Hub(line.split()[3], token, root, process)
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
