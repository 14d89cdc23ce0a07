"""docker-compose.yml as local processes: three replicas behind the real nginx, of which one is killed under load."""

import http.client
import json
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.service.compose_processes import BY_DEFAULT, SERVICES, Machine, in_order, is_job
from tests.service.fakes import png

NUM_REPLICAS = 3
NUM_CLIENTS = 12
NUM_BEFORE = 60
"""Responses before the kill."""
NUM_AFTER_EACH = 8
"""Requests that each client still sends after it."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("nginx") and shutil.which("curl")),
        reason="nginx is not installed: apt-get install nginx curl",
    ),
]


def photo(folder: Path) -> bytes:
    """A JPEG of some 150 kB."""
    path = folder / "photo.jpg"
    Image.effect_noise((640, 480), 60).convert("RGB").save(path, quality=75)
    assert 120_000 < path.stat().st_size < 200_000
    return path.read_bytes()


class Load:
    """Clients that post images one after the other and count what they get."""

    def __init__(self, url: str, key: str, bodies: list[bytes]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.is_warm = threading.Event()
        self.is_killed = threading.Event()
        self._host = url.removeprefix("http://")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._send, args=(bodies[number % len(bodies)],)) for number in range(NUM_CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _send(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        num_left = NUM_AFTER_EACH
        while num_left:
            num_left -= self.is_killed.is_set()
            try:
                connection.request("POST", "/v1/classify", body, self._headers)
                response = connection.getresponse()
                content = response.read()
                outcome = str(response.status) if response.status != 200 or b"predictions" in content else "no result"
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            with self._lock:
                self.outcomes[outcome] += 1
                if self.outcomes.total() >= NUM_BEFORE:
                    self.is_warm.set()
        connection.close()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """All services, healthy."""
    with Machine(tmp_path_factory.mktemp("compose"), {"ECA_DEMO_EPOCHS": "1"}, NUM_REPLICAS) as machine:
        conditions = [how for name in BY_DEFAULT for how in SERVICES[name].get("depends_on", {}).items()]
        needed = {name for name, how in conditions if how["condition"] == "service_healthy"}
        for name in in_order(BY_DEFAULT):
            for process in machine.replicas if name == "service" else [name]:
                machine.start(process)
            if name in needed:
                machine.wait_until_healthy(name)
        for name in filter(is_job, BY_DEFAULT):
            assert machine.running.pop(name).wait(timeout=300) == 0, machine.log(name)
        for process in machine.running:
            machine.wait_until_healthy(process)
        yield machine


def key_of(machine: Machine) -> dict[str, str]:
    return {"authorization": f"Bearer {machine.secret('api_keys')}"}


def access_log(machine: Machine) -> list[dict[str, Any]]:
    """The entries that nginx has written so far, without its errors."""
    return [json.loads(line) for line in machine.log("balancer").splitlines() if line.startswith("{")]


def entry_of(machine: Machine, request_id: str) -> dict[str, Any]:
    """The entry of a request, which nginx writes after the response."""
    deadline_s = time.monotonic() + 30
    while not (found := [entry for entry in access_log(machine) if entry["request_id"] == request_id]):
        assert time.monotonic() < deadline_s, machine.log("balancer")
        time.sleep(0.02)
    return found[0]


@pytest.mark.timeout(600)
def test_an_image_is_classified_through_the_balancer(machine: Machine) -> None:
    url = machine.url("balancer")
    assert httpx2.get(f"{url}/readyz").status_code == 200
    assert httpx2.post(f"{url}/v1/classify", content=png()).status_code == 401
    response = httpx2.post(f"{url}/v1/classify", content=png(), headers=key_of(machine) | {"x-request-id": "mine"})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == SERVICES["service"]["environment"]["ECA_MODEL"]
    assert response.headers["x-request-id"] == "mine"
    assert entry_of(machine, "mine")["status"] == 200


def test_what_the_balancer_refuses_has_the_shape_of_the_services_errors(machine: Machine) -> None:
    url = machine.url("balancer")
    headers = key_of(machine)
    large = httpx2.post(f"{url}/v1/classify", content=bytes(34 * 2**20), headers=headers)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    assert large.json()["error"]["request_id"] == large.headers["x-request-id"]
    # The service's own limit is lower, and its error passes through.
    form = {"file": ("a.png", bytes(int(32.5 * 2**20)), "image/png")}
    larger_than_allowed = httpx2.post(f"{url}/v1/classify", files=form, headers=headers)
    assert larger_than_allowed.status_code == 413
    assert "32 MiB" in larger_than_allowed.json()["error"]["message"]
    metrics = httpx2.get(f"{url}/metrics", headers=headers)
    assert (metrics.status_code, metrics.json()["error"]["code"]) == (404, "not_found")
    load = httpx2.post(f"{url}/v1/models", json={"model": "acme/other"}, headers=headers)
    assert (load.status_code, load.json()["error"]["code"]) == (403, "forbidden")
    assert httpx2.get(f"{url}/v1/models", headers=headers).status_code == 200


LINES = b"Host: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The load balancer alone."""
    with Machine(tmp_path_factory.mktemp("balancer"), {}) as machine:
        machine.start("balancer")
        machine.wait_until_healthy("balancer")
        yield machine


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"no HTTP\r\n\r\n", 400, "bad_http"),
        (b"GET /%zz HTTP/1.1\r\n" + LINES, 400, "bad_http"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_http"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n" + LINES, 400, "bad_http"),
        (b"DELETE /v1/models/acme/other HTTP/1.1\r\n" + LINES, 403, "forbidden"),
        (b"GET /error HTTP/1.1\r\n" + LINES, 404, "not_found"),
        (b"TRACE / HTTP/1.1\r\n" + LINES, 405, "method_not_allowed"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n" + LINES, 413, "too_large"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + LINES, 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 20_000 + b"\r\n" + LINES, 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\n" + (b"X-Many: " + b"a" * 10_000 + b"\r\n") * 9 + LINES, 431, "head_too_large"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n" + LINES, 501, "bad_http"),
        (b"GET / HTTP/1.1\r\n" + LINES, 503, "not_ready"),
        (b"GET / HTTP/9.9\r\n" + LINES, 505, "bad_http"),
    ],
    ids=lambda value: value[:20].decode() if isinstance(value, bytes) else str(value),
)
def test_every_error_of_the_balancer_itself_has_the_shape_of_the_services_errors(
    balancer: Machine, sent: bytes, status: int, code: str
) -> None:
    with socket.create_connection(("127.0.0.1", int(balancer.ports["balancer"])), timeout=30) as connection:
        connection.sendall(sent)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            body = json.loads(response.read())
    assert (response.status, response.headers["Content-Type"]) == (status, "application/json")
    assert body == {"error": body["error"]}
    assert set(body["error"]) == {"code", "message", "hint", "request_id"}
    assert body["error"]["code"] == code
    assert body["error"]["request_id"] == response.headers["X-Request-Id"]
    assert (response.headers["Retry-After"] == "2") == (status == 503)


def test_the_log_of_the_balancer_has_what_was_refused_without_its_query(balancer: Machine) -> None:
    url = balancer.url("balancer")
    id_of_request = httpx2.delete(f"{url}/v1/models/acme/other?key=secret").headers["x-request-id"]
    entry = entry_of(balancer, id_of_request)
    assert (entry["method"], entry["path"], entry["status"]) == ("DELETE", "/v1/models/acme/other", 403)
    assert "secret" not in json.dumps(entry)


@pytest.mark.timeout(600)
def test_no_response_fails_when_a_replica_is_killed_under_load_and_it_comes_back(
    machine: Machine, tmp_path: Path
) -> None:
    killed, address = "service-2", machine.replicas["service-2"]
    before = len(access_log(machine))
    load = Load(machine.url("balancer"), machine.secret("api_keys"), [png(24, 24), photo(tmp_path)])
    assert load.is_warm.wait(180)
    process = machine.running.pop(killed)
    process.send_signal(signal.SIGKILL)
    process.wait()
    load.is_killed.set()
    load.wait()
    assert set(load.outcomes) == {"200"}, load.outcomes
    entries = access_log(machine)[before:]
    retried = [entry for entry in entries if "," in entry["replicas"]]
    assert retried, "the killed replica had requests, or new ones were sent to it"
    assert all(entry["replicas"].startswith(address) for entry in retried), "no other replica failed"
    served = Counter(entry["replicas"].split(":")[0] for entry in entries if "," not in entry["replicas"])
    assert set(served) == set(machine.replicas.values()), "every replica had its share"

    # As `restart: unless-stopped` does.
    machine.start(killed)
    machine.wait_until_healthy(killed)
    url = machine.url("balancer")
    for number in range(100):
        headers = key_of(machine) | {"x-request-id": f"after-{number}"}
        assert httpx2.post(f"{url}/v1/classify", content=png(), headers=headers).status_code == 200
        if entry_of(machine, f"after-{number}")["replicas"].startswith(address):
            break
    else:
        pytest.fail("the replica gets no requests after its restart")


@pytest.mark.timeout(600)
def test_every_service_ends_at_sigterm(machine: Machine) -> None:
    for process in reversed(list(machine.running)):
        assert machine.stop(process) in (0, -signal.SIGTERM), machine.log(process)
