"""Endless, slow and hostile bodies over a socket: each costs little and delays no other client."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.images.image_files import encode, scene
from tests.service.server_process import Served, save_tiny_package, served

pytestmark = pytest.mark.slow

IMAGE = encode(scene(), "PNG")
FORM = b"multipart/form-data; boundary=xyz"
PART = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
END = b"\r\n--xyz--\r\n"
MAX_GROWTH_MIB = 32
MAX_CPU_S = 1.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    package = save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")
    with served("--model", str(package), "--body_timeout_s", "1") as running:
        running.client.headers["connection"] = "close"
        running.wait_until_ready()
        assert running.client.post("/v1/classify", content=IMAGE).status_code == 200
        yield running


def head(*lines: bytes) -> bytes:
    return b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def connect(service: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def status_of(response: bytes) -> int:
    return int(response.split()[1])


def test_an_endless_body_is_refused_at_the_limit_and_not_kept(service: Served) -> None:
    endless = (b"10000\r\n" + bytes(65536) + b"\r\n") * 640
    before_mib, num_sent = service.forget_peak(), 0
    with connect(service) as peer:
        peer.sendall(head(b"Transfer-Encoding: chunked"))
        peer.setblocking(False)
        response = b""
        while not response:
            with suppress(BlockingIOError):
                num_sent += peer.send(memoryview(endless)[num_sent : num_sent + 2**16])
            with suppress(BlockingIOError):
                response = peer.recv(65536)
    assert status_of(response) == 413
    assert num_sent < 20 * 2**20, "it is refused soon after the limit"
    assert service.peak_mib() - before_mib < MAX_GROWTH_MIB


def test_a_body_that_arrives_byte_by_byte_has_one_deadline(service: Served) -> None:
    with connect(service) as peer:
        peer.sendall(head(b"Content-Length: 1000000"))
        peer.settimeout(0.05)
        response = b""
        while not response:
            peer.sendall(b"x")
            with suppress(TimeoutError):
                response = peer.recv(65536)
    assert status_of(response) == 408


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize(("path", "status"), [(b"/v1/classify", 413), (b"/nowhere", 404), (b"/healthz", 405)])
def test_a_client_that_is_refused_while_it_sends_receives_the_response(
    service: Served, version: bytes, path: bytes, status: int
) -> None:
    length = 11 * 2**20
    with connect(service) as peer:
        lines = [b"Host: localhost", b"Connection: close", b"Content-Length: %d" % length, b"", b""]
        peer.sendall(b"POST " + path + b" " + version + b"\r\n" + b"\r\n".join(lines) + bytes(length))
        response = b"".join(iter(lambda: peer.recv(65536), b""))
    assert status_of(response) == status
    assert response.endswith(b"}")


@pytest.mark.parametrize(
    ("what", "body", "statuses"),
    [
        ("2000 empty fields", (b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n') * 2000 + END, {422}),
        ("2000 files", (PART + b"x\r\n") * 2000 + END[2:], {422}),
        ("a million boundaries", b"--xyz\r\n" * 1_000_000 + END, {400, 422}),
        ("boundaries in a row", b"--xyz" * 1_000_000, {400, 422}),
        ("a long text", b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a" * 2**21 + END, {422}),
        ("a long head", PART[:-2] + b"X-A: " + b"a" * 2**20 + b"\r\n\r\n" + IMAGE + END, {400}),
        ("many heads", PART[:-2] + b"X-A: a\r\n" * 100_000 + b"\r\n" + IMAGE + END, {400}),
        ("a long preamble", b"a" * 5 * 2**20 + b"\r\n" + PART + IMAGE + END, {200, 400}),
        ("a long epilogue", PART + IMAGE + END + b"a" * 5 * 2**20, {200, 400}),
        ("blank lines", b"\r\n" * 2**21 + PART + IMAGE + END, {200, 400}),
        ("an image cut off", PART + IMAGE[:-20], {400}),
        ("no end", PART + IMAGE, {400}),
        ("nothing", b"", {400}),
    ],
)
def test_a_stuffed_form_costs_little(service: Served, what: str, body: bytes, statuses: set[int]) -> None:
    begun_s = service.cpu_s()
    response = service.client.post("/v1/classify", content=body, headers={"content-type": FORM.decode()})
    assert response.status_code in statuses, (what, response.text)
    assert service.cpu_s() - begun_s < MAX_CPU_S, what
    assert service.client.post("/v1/classify", content=IMAGE).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        b'{"images": ["' + b"Q" * 20 * 2**20 + b'"]}',
        b'{"images": [' + b'"QQ==",' * 19_000 + b'"QQ=="]}',
        b'{"images": ' * 19_000,
        b"9" * 5 * 2**20,
        b'"' + b"\\u0000" * 2**20 + b'"',
        b" " * 20 * 2**20,
    ],
)
def test_stuffed_json_costs_little(service: Served, text: bytes) -> None:
    begun_s = service.cpu_s()
    response = service.client.post("/v1/classify", content=text, headers={"content-type": "application/json"})
    assert response.status_code in (400, 413, 422)
    assert len(response.content) < 2000
    assert service.cpu_s() - begun_s < MAX_CPU_S


def test_while_many_upload_slowly_others_are_served(service: Served) -> None:
    with ExitStack() as slow:
        for content_type in (FORM, b"image/png", b"application/json") * 20:
            peer = slow.enter_context(connect(service))
            peer.sendall(head(b"Content-Type: " + content_type, b"Content-Length: 1000000") + PART)
        assert service.client.get("/healthz").status_code == 200
        assert {service.client.post("/v1/classify", content=IMAGE).status_code for _ in range(5)} == {200}
    metrics = service.client.get("/metrics").text
    assert re.search(r'eca_requests_total\{code="200",route="/v1/classify"\} [1-9]', metrics)


def test_a_large_form_takes_no_more_memory_than_is_counted_for_it(service: Served) -> None:
    form = PART + bytes(9 * 2**20) + b"\r\n" + PART + bytes(9 * 2**20) + b"\r\n" + PART + bytes(9 * 2**20) + END
    before_mib = service.forget_peak()
    response = service.client.post("/v1/classify", content=form, headers={"content-type": FORM.decode()})
    assert response.status_code == 422
    # Two copies count: the body and its files. The growing buffer has up to an eighth more.
    assert service.peak_mib() - before_mib < 2.25 * len(form) / 2**20 + 8


NAMES = ["../../etc/cron.d/x", "/etc/passwd", "..\\..\\x", "C:\\x", "a\x00b", "a" * 1000, "file:///x", "| touch y", ""]


def test_names_of_files_are_never_names_on_disk(tmp_path: Path) -> None:
    package = save_tiny_package(tmp_path / "models" / "acme" / "digits")
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    with served("--model", str(package), cwd=tmp_path / "work", **places) as running:
        running.wait_until_ready()
        before = sorted(tmp_path.rglob("*"))
        for name in NAMES:
            disposition = f'form-data; name="file"; filename="{name}"'.encode()
            for padding in (b"", bytes(3 * 2**20)):
                part = b"--xyz\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + IMAGE + padding + END
                response = running.client.post("/v1/classify", content=part, headers={"content-type": FORM.decode()})
                assert response.status_code == 200, name
        assert sorted(tmp_path.rglob("*")) == before


def test_large_images_are_classified_where_only_small_files_can_be_written(tmp_path: Path) -> None:
    package = save_tiny_package(tmp_path / "digits")
    large = encode(scene(1600, 1200), "BMP")
    assert len(large) > 5 * 2**20
    small_files = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    run = "sys.argv = ['eca-hub', *sys.argv[1:]]; runpy.run_module('eca_hub', run_name='__main__')"
    command = [sys.executable, "-c", small_files + run, "serve", "--port", "0", "--model", str(package)]
    kept = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("ECA_")}
    process = subprocess.Popen(
        command,
        env=kept | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        running = Served(process, process.stdout.readline().removeprefix("serving on ").strip())
        with running.client as client:
            running.wait_until_ready()
            assert client.post("/v1/classify", content=large).status_code == 200
            assert client.post("/v1/classify", files=[("file", ("a.bmp", large, "image/bmp"))] * 2).status_code == 200
        assert running.stop() == 0
    finally:
        process.kill()
        process.communicate()
