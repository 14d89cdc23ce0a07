"""A local hub as its own process, for every test that needs a real one."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STOP_S = 10


@dataclass
class Hub:
    """A running hub."""

    url: str
    token: str
    root: Path
    process: subprocess.Popen[str]


@contextlib.contextmanager
def running_hub(
    root: Path, *, users: dict[str, object] | None = None, fault: str | None = None, options: tuple[str, ...] = ()
) -> Iterator[Hub]:
    """Start a hub on a free port of the loopback and stop it afterwards, whatever happened.

    Args:
        root: Its folder.
        users: Users with their tokens; the hub's token is then the first user's.
        fault: What ECA_FAULT is to say.
        options: Further options of `eca-hub localhub`.
    """
    environment = dict(os.environ)
    if fault:
        environment |= {"ECA_TESTING": "1", "ECA_FAULT": fault}
    with tempfile.TemporaryDirectory() as folder:
        if users:
            users_file = Path(folder) / "users.json"
            users_file.write_text(json.dumps(users))
            options += ("--users", str(users_file))
        command = [sys.executable, "-m", "eca_hub", "localhub", "--root", str(root), "--port", "0", *options]
        errors = Path(folder) / "stderr"
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("local hub ready: http://"), line + errors.read_text()
                if users:
                    first = next(iter(users.values()))
                    token = first["token"] if isinstance(first, dict) else str(first)
                else:
                    token = (root / "token").read_text().strip()
                yield Hub(line.split()[3], token, root, process)
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
