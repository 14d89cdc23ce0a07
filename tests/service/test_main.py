"""The service as a process with a real network."""

import concurrent.futures
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest

import eca_hub
from eca_service.errors import BadSetting
from eca_service.http.server import bind_listener
from tests.conftest import make_image, save_tiny_detector
from tests.service.fakes import png
from tests.service.server_process import Served, responses_of, save_tiny_package, served, start

pytestmark = pytest.mark.slow

IMAGES = [png(40, 30, color) for color in ("red", "green", "blue", "white", "black", "orange", "teal", "gray")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")


@pytest.fixture(scope="module")
def service(package: Path) -> Iterator[Served]:
    # The working folder makes the package's path look like a model id.
    arguments = ("--model", "acme/digits", "--header_timeout_s", "0.5", "--body_timeout_s", "1")
    with served(*arguments, cwd=package.parent.parent) as running:
        assert running.client.get("/healthz").status_code == 200, "healthy before it is ready"
        running.wait_until_ready()
        yield running


def test_the_stock_client_of_hugging_face_gets_the_objects_of_an_image(tmp_path: Path) -> None:
    package = save_tiny_detector(tmp_path / "acme" / "masks")
    (tmp_path / "photo.png").write_bytes(make_image(120, 90))
    expected = eca_hub.Detector.from_pretrained(package).predict(tmp_path / "photo.png", min_score=0.05)
    with served("--model", "acme/masks", cwd=tmp_path) as running:
        running.wait_until_ready()
        client = huggingface_hub.InferenceClient(model=f"{running.url}/models/acme/masks", token="unused")
        found = client.object_detection(tmp_path / "photo.png", threshold=0.05)
        certain = client.object_detection((tmp_path / "photo.png").read_bytes())
    assert len(found) == len(expected) > 0
    for each, right in zip(found, expected, strict=True):
        assert each.label == right.label
        assert each.score == pytest.approx(right.score, abs=1e-6)
        edges = (each.box.xmin, each.box.ymin, each.box.xmax, each.box.ymax)
        assert edges == pytest.approx(right.box, abs=0.51)
    assert [each.score for each in certain] == [each.score for each in found if each.score >= 0.5]


def test_the_service_returns_what_the_library_returns(service: Served, package: Path) -> None:
    classifier = eca_hub.Classifier.from_pretrained(package)
    for content in IMAGES:
        body = service.client.post("/v1/classify?top_k=10", content=content).json()
        expected = classifier.predict(content, top_k=10)
        assert body["model"] == "acme/digits"
        assert body["revision"] == classifier.revision
        assert body["predictions"][0]["label"] == expected[0].label
        scores = {one["label"]: one["score"] for one in body["predictions"]}
        assert scores == pytest.approx({one.label: one.score for one in expected}, abs=1e-4)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_support_head(service: Served, path: str) -> None:
    response = service.client.head(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client leaves its connection open
def test_the_inference_client_of_hugging_face_works(service: Served, package: Path, tmp_path: Path) -> None:
    classifier = eca_hub.Classifier.from_pretrained(package)
    client = huggingface_hub.InferenceClient(model=f"{service.url}/models/acme/digits", token="unused")
    file = tmp_path / "red.png"
    file.write_bytes(IMAGES[0])
    expected = classifier.predict(IMAGES[0], top_k=5)
    for response in (client.image_classification(IMAGES[0]), client.image_classification(file)):
        assert [one.label for one in response] == [one.label for one in expected]
        assert [one.score for one in response] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert len(client.image_classification(file, top_k=2)) == 2
    sigmoid = client.image_classification(file, top_k=10, function_to_apply="sigmoid")
    logits = client.image_classification(file, top_k=10, function_to_apply="none")
    assert [one.score for one in sigmoid] == pytest.approx([1 / (1 + math.exp(-one.score)) for one in logits])


def test_concurrent_clients_share_batches_and_each_gets_its_own_result(service: Served) -> None:
    expected = {content: service.client.post("/v1/classify", content=content).json() for content in IMAGES}
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        contents = IMAGES * 16
        bodies = list(
            clients.map(lambda content: service.client.post("/v1/classify", content=content).json(), contents)
        )
    for content, body in zip(contents, bodies, strict=True):
        assert body["predictions"][0]["label"] == expected[content]["predictions"][0]["label"]
        assert body["predictions"][0]["score"] == pytest.approx(expected[content]["predictions"][0]["score"], abs=1e-4)
    assert sum(body["batch_size"] for body in bodies) / len(bodies) > 1.5
    assert max(body["batch_size"] for body in bodies) <= 8


@pytest.mark.parametrize(
    ("content", "query", "status"),
    [
        (b"", "", 422),
        (IMAGES[0][:40], "", 422),
        (b"%PDF-1.4", "", 422),
        (bytes(20 * 2**20), "", 413),
        (IMAGES[0], "?model=acme/other", 404),
        (IMAGES[0], "?top_k=0", 422),
        (IMAGES[0], "?top_k=eleven", 422),
    ],
)
def test_a_bad_request_is_refused_and_the_next_one_works(
    service: Served, content: bytes, query: str, status: int
) -> None:
    response = service.client.post(f"/v1/classify{query}", content=content)
    assert response.status_code == status
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]
    assert service.client.post("/v1/classify", content=IMAGES[0]).status_code == 200


def talk(service: Served, *pieces: bytes, within_s: float = 4) -> bytes:
    """Send raw bytes and read until the service disconnects."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=within_s) as peer:
        for piece in pieces:
            peer.sendall(piece)
        received = b""
        while chunk := peer.recv(65536):
            received += chunk
    return received


@pytest.mark.parametrize("head", [b"", b"POST /v1/cla", b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_headers_that_do_not_arrive_end_the_connection(service: Served, head: bytes) -> None:
    assert talk(service, head) == b""


def test_a_body_that_does_not_arrive_gets_408_and_ends_the_connection(service: Served) -> None:
    received = talk(service, b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in received


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/3.7\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: a\x00b\r\n\r\n",
    ],
)
def test_malformed_http_is_refused_in_the_same_shape(service: Served, head: bytes) -> None:
    received = talk(service, head)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"bad_http"' in received


def test_huge_headers_are_refused(service: Served) -> None:
    start_of_head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    many = b"".join(b"X-%d: y\r\n" % number for number in range(500))
    for more in (b"X: " + b"a" * 100_000 + b"\r\n", many):
        assert talk(service, start_of_head + more + b"\r\n")[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")


def test_a_body_in_hundreds_of_thousands_of_chunks_is_refused(service: Served) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    begun_s = service.cpu_s()
    received = talk(service, head, b"1\r\nx\r\n" * 300_000)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"bad_http"' in received
    assert service.cpu_s() - begun_s < 1.5
    response = service.client.get("/metrics").text
    assert "eca_body_bytes 0" in response, "what had arrived of it is freed"


def test_a_body_with_too_large_a_content_length_is_refused_before_it_is_sent(service: Served) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=4) as peer:
        peer.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert peer.recv(100).startswith(b"HTTP/1.1 413 ")


def test_sigterm_shuts_it_down_gracefully(package: Path) -> None:
    with served("--model", str(package)) as running:
        running.wait_until_ready()
        idle = socket.create_connection(("127.0.0.1", running.port))
        with idle, concurrent.futures.ThreadPoolExecutor(8) as clients:
            content = IMAGES[0]
            requests = [clients.submit(running.client.post, "/v1/classify", content=content) for _ in range(8)]
            concurrent.futures.wait(requests, return_when=concurrent.futures.FIRST_COMPLETED)
            started = time.monotonic()
            assert running.stop(signal.SIGTERM) == 0
            assert time.monotonic() - started < 8, "shutdown waited for the idle connection"
            # A client that has not connected by then may be refused.
            responded = [one for one in requests if not isinstance(one.exception(), httpx2.ConnectError)]
            assert {one.result().status_code for one in responded} == {200}
        assert running.process.stdout is not None
        assert running.process.stdout.read() == "", "one line on standard output, no more"


def test_it_responds_while_draining_and_a_second_signal_exits_at_once(package: Path) -> None:
    with served("--model", str(package), "--drain_delay_s", "60") as running:
        running.wait_until_ready()
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_log("draining")
        assert running.client.get("/readyz").json()["error"]["code"] == "not_ready"
        assert running.client.post("/v1/classify", content=IMAGES[0]).status_code == 200
        started = time.monotonic()
        assert running.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 2


def test_a_signal_during_loading_shuts_it_down(package: Path) -> None:
    with served("--model", str(package)) as running:
        assert running.client.get("/readyz").status_code == 503
        assert running.stop(signal.SIGINT) == 0


def test_weights_that_are_overwritten_on_disk_change_no_result(package: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(package, tmp_path / "digits"))
    with served("--model", str(copied)) as running:
        running.wait_until_ready()

        def scores() -> list[float]:
            responses = responses_of(running.client, IMAGES)
            return [one["score"] for response in responses for one in response["predictions"]]

        before, weights = scores(), copied / "model.safetensors"
        # In place, as cp does: a memory-mapped file would change the network or crash the process.
        with weights.open("r+b") as file:
            file.seek(weights.stat().st_size // 2)
            file.write(b"\xff" * 4096)
        assert scores() == pytest.approx(before, abs=1e-6)
        os.truncate(weights, 10)
        assert scores() == pytest.approx(before, abs=1e-6)
        assert running.client.get("/readyz").status_code == 200


def test_a_named_pipe_in_place_of_a_file_does_not_block(package: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(package, tmp_path / "digits"))
    for name in ("model.safetensors", "config.json"):
        (copied / name).unlink()
        os.mkfifo(copied / name)
        process = start("--model", str(copied), "--port", "0")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "Traceback" not in err


def test_an_image_gets_the_same_result_in_a_batch_and_alone(service: Served) -> None:
    alone = [response["predictions"] for response in responses_of(service.client, IMAGES)]
    files = [("file", ("a.png", content, "image/png")) for content in IMAGES]
    response = service.client.post("/v1/classify", files=files).json()
    assert max(result["batch_size"] for result in response["results"]) > 1
    for result, expected in zip(response["results"], alone, strict=True):
        assert result["predictions"][0]["label"] == expected[0]["label"]
        scores = {one["label"]: one["score"] for one in result["predictions"]}
        assert scores == pytest.approx({one["label"]: one["score"] for one in expected}, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "lasts_s", "code"), [("engine", "0", 3), ("engine", "1e6", 3), ("of a library", "1e6", 3)]
)
def test_daemon_threads_are_joined_with_a_timeout_at_exit(name: str, lasts_s: str, code: int) -> None:
    thread = f"threading.Thread(target=threading.Event().wait, args=({lasts_s},), name={name!r}, daemon=True)"
    load = "import threading; from eca_service.http.server import join_daemon_threads"
    program = f"{load}; {thread}.start(); join_daemon_threads(0.5); exit(3)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == code


def test_a_port_that_is_taken_ends_it_with_one_sentence(package: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("--model", str(package), "--port", str(port))
        out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert out == ""
    assert err.strip() == (
        f"eca-hub serve: Cannot listen on 127.0.0.1 port {port}: Address already in use. "
        "Set --port to a free one, or to 0."
    )


def test_a_host_that_cannot_be_encoded_is_one_sentence() -> None:
    with pytest.raises(BadSetting, match=r"Cannot listen on vision\.\.example port 0: "):
        bind_listener("vision..example", 0)


def test_a_model_that_does_not_load_ends_it_with_one_sentence(tmp_path: Path) -> None:
    process = start("--model", str(tmp_path), "--port", "0")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out.count("\n") == 1
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("eca-hub serve: ")
    assert str(tmp_path) in err
