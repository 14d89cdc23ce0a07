"""Malformed, ambiguous and excessive HTTP over a socket: the process responds or disconnects."""

import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.images.image_files import encode, scene
from tests.service.server_process import Served, save_tiny_package, served, start

KEY = b"SENTINEL-of-the-wire"
IMAGE = encode(scene(), "PNG")
AUTH = b"Authorization: Bearer " + KEY + b"\r\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")


@pytest.fixture(scope="module")
def service(package: Path) -> Iterator[Served]:
    timeouts = ("--header_timeout_s", "--body_timeout_s", "--write_timeout_s", "--keep_alive_s")
    options = [word for name in timeouts for word in (name, "1")] + ["--allowed_hosts", "x,localhost,127.0.0.1"]
    with served("--model", str(package), *options, ECA_API_KEYS=KEY.decode()) as running:
        # An idle connection is closed after a second, which a busy machine may need for the next request.
        running.client.headers["connection"] = "close"
        running.wait_until_ready()
        yield running


def request(path: bytes = b"/v1/classify", *lines: bytes, method: bytes = b"POST", body: bytes | None = IMAGE) -> bytes:
    head = b"".join(line + b"\r\n" for line in lines)
    if body is not None:
        head += b"Content-Length: %d\r\n" % len(body)
    return method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n" + AUTH + head + b"\r\n" + (body or b"")


def talk(service: Served, sent: bytes) -> list[int]:
    """Send bytes, read until the service disconnects; return the statuses, and check each error's shape."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
        peer.sendall(sent)
        received = b"".join(iter(lambda: peer.recv(65536), b""))
    assert KEY not in received
    for body in re.findall(rb'\{"error".*?\}\}', received):
        assert set(json.loads(body)["error"]) == {"code", "message", "hint", "request_id"}
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


def is_healthy(service: Served) -> bool:
    return talk(service, request()) == [200]


@pytest.mark.parametrize(
    "length",
    [
        b"-1",
        b"+5",
        b"0x10",
        b"5, 6",
        b"5, 5",
        b"5,",
        b"",
        b"1e3",
        b"5\r\nContent-Length: 6",
        b"5\r\nContent-Length: 5",
        b"5\r\ncontent-LENGTH: 5",
        b"9" * 30,
    ],
)
def test_a_length_must_be_one_number(service: Served, length: bytes) -> None:
    head = request(b"/v1/classify", b"Content-Length: " + length, body=None)
    assert talk(service, head + b"12345" + request(b"/healthz", method=b"GET", body=None)) == [400]


@pytest.mark.parametrize(
    "lines",
    [
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    ],
)
def test_a_body_is_framed_in_one_way(service: Served, lines: tuple[bytes, ...]) -> None:
    smuggled = b"0\r\n\r\n" + request(b"/v1/models", method=b"GET", body=None)
    assert talk(service, request(b"/v1/classify", *lines, body=None) + smuggled)[:1] in ([400], [501])
    assert is_healthy(service)


def test_a_length_beside_chunks_does_not_smuggle_a_second_request(service: Served) -> None:
    second = request(b"/v1/models", method=b"GET", body=None)
    lines = [b"Transfer-Encoding: chunked", b"Content-Length: %d" % (5 + len(second))]
    for both in (lines, lines[::-1]):
        assert talk(service, request(b"/v1/classify", *both, body=None) + b"0\r\n\r\n" + second) == [400]


@pytest.mark.parametrize("chunk", [b"-5\r\n", b"5;" + b"x" * 70_000 + b"\r\n", b"FFFFFFFFFFFFFFFFFF\r\n", b"5 \r\nab"])
def test_a_malformed_chunk_is_refused(service: Served, chunk: bytes) -> None:
    statuses = talk(service, request(b"/v1/classify", b"Transfer-Encoding: chunked", body=None) + chunk)
    assert statuses
    assert statuses[0] in (400, 408, 413)


@pytest.mark.parametrize("line", [b"X-A: a\x00b", b"X-A: a\rb", b"X A: b", b": none", b"X-\xff: b"])
def test_a_malformed_header_is_refused(service: Served, line: bytes) -> None:
    assert talk(service, request(b"/healthz", line, method=b"GET", body=None)) == [400]


@pytest.mark.parametrize(
    ("strict", "loose"),
    [
        (b"\r\nHost", b"\nHost"),
        (b"x\r\n", b"x\n"),
        (b"\r\n\r\n", b"\n\n"),
        (b"\r\n\r\n", b"\r\n\n"),
        (b"Host: x", b"Host: x\r\n folded"),
        (b"Host: x", b"Host:\r\n\tx"),
        (b"Host: x", b"Host: x\r\nX-A: a\r\n \r\n b"),
        (b"\r\nHost", b"\r\n Host: y\r\nHost"),
        (b"Host", b"Host "),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_header_lines_with_bare_lf_or_folding_are_refused(
    service: Served, method: bytes, strict: bytes, loose: bytes
) -> None:
    good = request(b"/healthz", method=method, body=None)
    assert strict in good
    second = request(b"/v1/models", method=b"GET", body=None)
    assert talk(service, good.replace(strict, loose, 1) + second) == [400]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/healthz", 200),
        (b"HTTP://LOCALHOST:8000/docs?a=b", 200),
        (b"http://localhost", 200),
        (b"http://localhost?a=b", 200),
        (b"http://localhost/nothing", 404),
        (b"http:///healthz", 400),
        (b"http://user@localhost/healthz", 400),
        (b"ftp://localhost/healthz", 404),
    ],
)
def test_a_target_may_be_a_whole_url(service: Served, target: bytes, status: int) -> None:
    assert talk(service, request(target, b"Connection: close", method=b"GET", body=None)) == [status]


@pytest.mark.parametrize(
    ("host", "header", "status"), [(b"localhost", b"evil.example", 200), (b"evil.example", b"localhost", 400)]
)
def test_the_host_of_a_url_is_checked_instead_of_the_header(
    service: Served, host: bytes, header: bytes, status: int
) -> None:
    head = b"GET http://%s/v1/models HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n" % (host, header, AUTH)
    assert talk(service, head) == [status]


def test_headers_that_arrive_byte_by_byte_are_parsed_as_strictly(service: Served) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n":
            peer.sendall(bytes([byte]))
        assert peer.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_head_and_options_have_no_body_and_keep_the_connection_usable(service: Served) -> None:
    row = [(b"HEAD", b"/healthz"), (b"OPTIONS", b"/v1/classify"), (b"HEAD", b"/v1/classify"), (b"GET", b"/healthz")]
    statuses = talk(service, b"".join(request(path, method=method, body=None) for method, path in row))
    assert len(statuses) == 4
    assert statuses[3] == 200
    assert set(statuses[:3]) <= {200, 204, 405}


@pytest.mark.parametrize("path", [b"/", b"/metrics", b"/v1/models", b"/v2", b"/v2/health/ready", b"/openapi.json"])
def test_head_has_the_headers_of_get_and_no_body(service: Served, path: bytes) -> None:
    responses = []
    for method in (b"GET", b"HEAD"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
            peer.sendall(request(path, b"Connection: close", method=method, body=None))
            headers, _, body = b"".join(iter(lambda: peer.recv(65536), b"")).partition(b"\r\n\r\n")
            responses.append((headers.splitlines()[0], b"\r\ncontent-type:" in headers.lower(), bool(body)))
    assert responses == [(b"HTTP/1.1 200 OK", True, True), (b"HTTP/1.1 200 OK", True, False)]


def test_100_continue_is_sent_only_for_a_body_that_will_be_read(service: Served) -> None:
    expecting = request(b"/v1/classify", b"Expect: 100-continue", b"Content-Length: %d" % len(IMAGE), body=None)
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
        peer.sendall(expecting)
        assert peer.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(IMAGE)
        assert peer.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("expectation", [b"200-ok", b"x=1", b"100-continue-please"])
def test_another_expectation_than_100_continue_is_ignored(service: Served, expectation: bytes) -> None:
    assert talk(service, request(b"/v1/classify", b"Expect: " + expectation, b"Connection: close")) == [200]


def test_chunks_may_have_extensions_and_trailers(service: Served) -> None:
    half = len(IMAGE) // 2
    pieces = [b"%X;name=value\r\n%s\r\n" % (len(piece), piece) for piece in (IMAGE[:half], IMAGE[half:])]
    head = request(b"/v1/classify", b"Transfer-Encoding: chunked", b"Connection: close", body=None)
    assert talk(service, head + b"".join(pieces) + b"0\r\nX-Trailer: Authorization: Bearer\r\n\r\n") == [200]


@pytest.mark.parametrize("host", [b"a/b?c#", b"evil.example", b"/v1/models", b"127.0.0.1:1/docs?", b"\xff"])
def test_the_host_header_does_not_affect_authentication(service: Served, host: bytes) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 1\r\nConnection: close\r\n\r\n7"
    assert talk(service, head) in ([401], [400])


def test_a_host_header_is_required(service: Served) -> None:
    assert talk(service, b"GET /healthz HTTP/1.1\r\n\r\n") == [400]


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"PUT", b"PATCH", b"DELETE", b"GET", b"BREW"])
def test_other_methods_are_refused(service: Served, method: bytes) -> None:
    assert talk(service, request(b"/v1/classify", method=method, body=b"")) == [405]


@pytest.mark.parametrize(
    "sent",
    [
        b"\0 / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\r\n" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    ],
)
def test_another_protocol_is_refused_or_disconnected(service: Served, sent: bytes) -> None:
    assert talk(service, sent) in ([400], [])


@pytest.mark.parametrize(
    "path",
    [b"//", b"//v1/classify", b"/v1//classify", b"/%2e%2e/", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/classify%00", b"/%ff"],
)
def test_other_paths_are_not_found(service: Served, path: bytes) -> None:
    assert talk(service, request(path)) in ([404], [400])


def test_a_long_path_is_refused(service: Served) -> None:
    assert talk(service, request(b"/v1/classify?model=" + b"a" * 20_000)) in ([431], [414], [400])


def test_pipelined_requests_get_responses_in_order_up_to_the_malformed_one(service: Served) -> None:
    row = b"".join(request(b"/v1/classify?top_k=%d" % (number % 10 + 1)) for number in range(49))
    assert talk(service, row + b"nonsense\r\n\r\n") == [200] * 49 + [400]


def test_a_compressed_body_is_not_decompressed(service: Served) -> None:
    assert talk(service, request(b"/v1/classify", b"Content-Encoding: gzip")) == [415]


def test_idle_connections_are_no_load(service: Served) -> None:
    with ExitStack() as idle:
        for _ in range(300):
            peer = idle.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20))
            peer.sendall(request(b"/healthz", method=b"GET", body=None))
        assert is_healthy(service)


@pytest.mark.slow
def test_clients_that_never_read_their_responses_are_disconnected(service: Served) -> None:
    sent = request(b"/openapi.json", method=b"GET", body=None) * 600
    with ExitStack() as clients:
        hang_ups, waiting = select.poll(), set()
        for _ in range(8):
            peer = clients.enter_context(socket.socket())
            # The kernels keep up to 4 MiB of the responses; the rest stays in the service.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.settimeout(20)
            peer.connect(("127.0.0.1", service.port))
            with suppress(ConnectionError):
                peer.sendall(sent)
            hang_ups.register(peer, 0)
            waiting.add(peer.fileno())
        assert is_healthy(service), "other clients get responses meanwhile"
        while waiting:
            waiting -= {file for file, _ in hang_ups.poll()}


@pytest.mark.parametrize("header", [b"", b"Authorization: Bearer wrong\r\n"])
def test_without_a_key_the_body_is_not_awaited(service: Served, header: bytes) -> None:
    expecting = b"Content-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
        peer.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n" + header + expecting)
        assert peer.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.slow
def test_with_few_files_to_open_it_recovers_from_a_flood(package: Path) -> None:
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    run = "sys.argv = ['eca-hub', *sys.argv[1:]]; runpy.run_module('eca_hub', run_name='__main__')"
    command = [sys.executable, "-c", limited + run, "serve", "--port", "0", "--model", str(package)]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    process = subprocess.Popen(
        [*command, "--header_timeout_s", "1", "--allowed_hosts", "*"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        running = Served(process, process.stdout.readline().removeprefix("serving on ").strip())
        with running.client:
            running.wait_until_ready()
        with ExitStack() as flood:
            for _ in range(100):
                flood.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=20))
        assert talk(running, request(b"/v1/classify", b"Connection: close")) == [200]
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_it_keeps_running_when_its_log_is_closed(package: Path) -> None:
    process = start("--port", "0", "--model", str(package))
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        running = Served(process, process.stdout.readline().removeprefix("serving on ").strip())
        process.stderr.close()
        process.stdout.close()
        with running.client as client:
            running.wait_until_ready()
            assert client.post("/v1/classify", content=IMAGE).status_code == 200
            assert client.post("/v1/classify", content=b"none").status_code == 422
        assert running.stop() == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("", 120), ("flush_stdio()", 0)])
def test_an_unread_half_line_does_not_change_the_exit_code(how: str, code: int) -> None:
    load = "import sys; from eca_service.http.server import flush_stdio"
    program = f"{load}; sys.stdin.readline(); print(end='half'); {how}"
    pipe = subprocess.PIPE
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, env=buffered)
    assert process.stdout is not None
    process.stdout.close()
    process.communicate(b"\n")
    assert process.returncode == code


def test_open_connections_and_their_limit_have_a_metric(service: Served) -> None:
    text = service.client.get("/metrics", headers={"authorization": f"Bearer {KEY.decode()}"}).text
    values = dict(line.split(" ") for line in text.splitlines() if line.startswith("eca_connections"))
    assert 1 <= float(values["eca_connections"]) <= float(values["eca_connections_limit"])
