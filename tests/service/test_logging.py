"""The log of a process under hostile requests: no key, no image, no line of a client's, no traceback."""

import base64
import json
import logging
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eca_service.logging import log_access, log_to_stderr
from tests.images.image_files import encode, scene
from tests.service.server_process import Served, save_tiny_package, served

KEY, ADMIN_KEY = "SENTINEL-key", "SENTINEL-admin"
IMAGE = encode(scene(), "JPEG")
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the process wrote, from its start to its end, on both of its outputs."""
    package = save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")
    keys = {"ECA_API_KEYS": KEY, "ECA_ADMIN_KEYS": ADMIN_KEY}
    timeouts = ("--header_timeout_s", "1", "--body_timeout_s", "1")
    with served("--model", "acme/digits", *timeouts, cwd=package.parent.parent, **keys) as running:
        running.wait_until_ready()
        ask_all_sorts_of_things(running)
        hang_up_everywhere(running)
        running.wait_until_ready()
        running.process.send_signal(signal.SIGTERM)
        out, err = running.process.communicate(timeout=20)
        assert running.process.returncode == 0, err
    return out + err


def ask_all_sorts_of_things(service: Served) -> None:
    for key in (KEY, ADMIN_KEY, KEY + "x", "é"):
        headers = {b"authorization": f"Bearer {key}".encode("latin-1"), b"x-request-id": b"SENTINEL-id with blanks"}
        for content in (IMAGE, IMAGE[:200], b"SENTINEL-content", b""):
            service.client.post("/v1/classify", content=content, headers=headers)
            service.client.post(f"/v1/classify?key={KEY}&x=%0d%0aSENTINEL-line", content=content, headers=headers)
            service.client.post(f"/v1/classify?model=%0d%0aSENTINEL-line/{KEY}", content=content, headers=headers)
        service.client.get(f"/SENTINEL-path%0d%0aSENTINEL-line/{KEY}", headers=headers)
        for name in ("acme/SENTINEL-model", "acme/\r\nSENTINEL-line", "../SENTINEL-model"):
            service.client.post("/v1/models", json={"model": name}, headers=headers)


def hang_up_everywhere(service: Served) -> None:
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()
    whole = head + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
    dice = random.Random(22)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.sendall(whole[: dice.choice((5, len(head), len(whole) - 1, len(whole)))])


@pytest.mark.slow
def test_keys_are_not_logged(log: str) -> None:
    assert KEY not in log
    assert ADMIN_KEY not in log


@pytest.mark.slow
def test_contents_and_paths_are_not_logged(log: str) -> None:
    for sent in ("SENTINEL-content", "SENTINEL-path", "SENTINEL-id", "JFIF", base64.b64encode(IMAGE).decode()[:40]):
        assert sent not in log


def entries_of(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if not line.startswith("serving on http://127.0.0.1:")]


@pytest.mark.slow
def test_every_line_is_one_json_object_of_ours(log: str) -> None:
    for entry in entries_of(log):
        assert {"time", "level", "logger", "message"} <= entry.keys()
        assert not str(entry["message"]).startswith("SENTINEL-line")


@pytest.mark.slow
def test_the_access_log_has_id_route_template_status_and_milliseconds(log: str) -> None:
    access = [entry for entry in entries_of(log) if entry["logger"] == "eca_service.access"]
    assert {200, 401, 404, 422, None} <= {entry["status"] for entry in access}
    assert {entry["route"] for entry in access} == {"/v1/classify", "/v1/models", "/readyz", "none"}
    for entry in access:
        assert re.fullmatch("[0-9a-f]{32}", entry["request_id"])
        assert entry["method"] in ("GET", "POST")
        assert entry["ms"] >= 0


@pytest.mark.slow
def test_clients_that_disconnect_are_no_errors(log: str) -> None:
    assert "Traceback" not in log
    assert len([entry for entry in entries_of(log) if entry["logger"] != "eca_service.access"]) < 60


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_a_terminal_gets_text_and_a_pipe_json_with_an_access_log(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.openpty() if kind == "terminal" else os.pipe()
    with os.fdopen(reading, "rb", 0) as reader, os.fdopen(writing, "w") as stream:
        # Here and not in a fixture: between the two, pytest sets its own.
        monkeypatch.setattr(sys, "stderr", stream)
        with log_to_stderr("auto", "auto"):
            logging.getLogger("eca_service.anything").warning("a message")
            log_access("id-1", "GET", "/readyz", 200, 0.0123)
        lines = reader.read(65536).decode().splitlines()
    if kind == "terminal":
        [line] = lines
        assert line.endswith(" WARNING eca_service.anything: a message")
    else:
        message, access = map(json.loads, lines)
        assert (message["level"], message["message"]) == ("WARNING", "a message")
        fields = {"request_id": "id-1", "method": "GET", "route": "/readyz", "status": 200, "ms": 12.3}
        assert access.items() >= fields.items()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs POSIX")
def test_a_log_that_is_not_read_blocks_neither_requests_nor_the_exit() -> None:
    program = (
        "import logging; from eca_service.logging import log_to_stderr\n"
        "with log_to_stderr('json', 'on'):\n"
        "    for number in range(20_000): logging.getLogger('x').info('%d' % number)\n"
        "print('done')"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.read() == "done\n"
    assert process.wait(timeout=60) == 0
    process.communicate()


@pytest.mark.slow
def test_the_log_names_the_model(log: str) -> None:
    assert "acme/digits at " in log
    assert str(Path("acme/digits")) in log
