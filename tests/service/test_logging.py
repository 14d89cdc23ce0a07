"""The log of a process under hostile requests: no key, no image, no line of a client's, no traceback."""

import base64
import io
import json
import logging
import random
import re
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from eca_service.logging import log_access, log_to_stderr
from tests.images.image_files import encode, scene
from tests.service.server_process import Served, save_tiny_package, served

KEY, ADMIN_KEY = "SENTINEL-key", "SENTINEL-admin"
PICTURE = encode(scene(), "JPEG")
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
        for content in (PICTURE, PICTURE[:200], b"SENTINEL-content", b""):
            service.client.post("/v1/classify", content=content, headers=headers)
            service.client.post(f"/v1/classify?key={KEY}&x=%0d%0aSENTINEL-line", content=content, headers=headers)
            service.client.post(f"/v1/classify?model=%0d%0aSENTINEL-line/{KEY}", content=content, headers=headers)
        service.client.get(f"/SENTINEL-path%0d%0aSENTINEL-line/{KEY}", headers=headers)
        for name in ("acme/SENTINEL-model", "acme/\r\nSENTINEL-line", "../SENTINEL-model"):
            service.client.post("/v1/models", json={"model": name}, headers=headers)


def hang_up_everywhere(service: Served) -> None:
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()
    whole = head + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE
    dice = random.Random(22)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.sendall(whole[: dice.choice((5, len(head), len(whole) - 1, len(whole)))])


def test_keys_are_not_in_it(log: str) -> None:
    assert KEY not in log
    assert ADMIN_KEY not in log


def test_what_was_sent_is_not_in_it(log: str) -> None:
    for sent in ("SENTINEL-content", "SENTINEL-path", "SENTINEL-id", "JFIF", base64.b64encode(PICTURE).decode()[:40]):
        assert sent not in log


def entries_of(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if not line.startswith("serving on http://127.0.0.1:")]


def test_every_line_is_one_json_object_of_ours(log: str) -> None:
    for entry in entries_of(log):
        assert {"time", "level", "logger", "message"} <= entry.keys()
        assert not str(entry["message"]).startswith("SENTINEL-line")


def test_the_access_log_has_id_route_template_status_and_milliseconds(log: str) -> None:
    access = [entry for entry in entries_of(log) if entry["logger"] == "eca_service.access"]
    assert {200, 401, 404, 422, None} <= {entry["status"] for entry in access}
    assert {entry["route"] for entry in access} == {"/v1/classify", "/v1/models", "/readyz", "none"}
    for entry in access:
        assert re.fullmatch("[0-9a-f]{32}", entry["request_id"])
        assert entry["method"] in ("GET", "POST")
        assert entry["ms"] >= 0


def test_clients_that_disconnect_are_no_errors(log: str) -> None:
    assert "Traceback" not in log
    assert len([entry for entry in entries_of(log) if entry["logger"] != "eca_service.access"]) < 60


class Output(io.StringIO):
    """Standard error, as a terminal or not; writing waits for `gate`."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal
        self.gate = threading.Event()
        self.gate.set()

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.gate.wait()
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_on_a_terminal_the_log_is_text_without_an_access_log(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    output = Output(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", output)
    with log_to_stderr("auto", "auto"):
        logging.getLogger("eca_service.anything").warning("a message")
        log_access("id-1", "GET", "/readyz", 200, 0.0123)
    lines = output.getvalue().splitlines()
    if is_terminal:
        [line] = lines
        assert line.endswith(" WARNING eca_service.anything: a message")
    else:
        message, access = map(json.loads, lines)
        assert (message["level"], message["message"]) == ("WARNING", "a message")
        assert {key: access[key] for key in ("request_id", "method", "route", "status", "ms")} == {
            "request_id": "id-1",
            "method": "GET",
            "route": "/readyz",
            "status": 200,
            "ms": 12.3,
        }


def test_a_log_that_is_not_read_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(is_terminal=False)
    output.gate.clear()
    monkeypatch.setattr(sys, "stderr", output)
    logger = logging.getLogger("eca_service.anything")
    with log_to_stderr("json", "on"):
        for number in range(20_000):
            logger.info("%d", number)
        output.gate.set()
    assert 10_000 <= len(output.getvalue().splitlines()) <= 10_002, "beyond the bound, records are dropped"


def test_the_log_says_what_was_served(log: str) -> None:
    assert "acme/digits at " in log
    assert str(Path("acme/digits")) in log
