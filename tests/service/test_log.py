"""What a process writes down while strangers talk to it: no key, no picture, no line of theirs, no traceback."""

import base64
import random
import re
import signal
import socket
import struct
from pathlib import Path

import pytest

from tests.images.image_files import encode, scene
from tests.service.process import Served, save_tiny_package, served

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
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
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


def test_nobody_writes_lines_into_it(log: str) -> None:
    stamped = re.compile(r"(serving on|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+: )")
    for line in log.splitlines():
        assert stamped.match(line), line
    assert not any(line.startswith("SENTINEL-line") for line in log.splitlines())


def test_callers_who_hang_up_are_no_accident(log: str) -> None:
    assert "Traceback" not in log
    assert len(log.splitlines()) < 60, "a hundred callers who hang up are not worth a line each"


def test_the_log_says_what_was_served(log: str) -> None:
    assert "acme/digits at " in log
    assert str(Path("acme/digits")) in log
