"""Pictures as strangers send them, one after the other and many at once, to the process that operators start."""

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.images.hostile_images import Hostile, hostile_images
from tests.images.hostile_jpegs import hostile_jpegs
from tests.images.hostile_variants import hostile_variants
from tests.images.image_files import encode, scene
from tests.service.server_process import Served, save_tiny_package, served

MAX_CPU_S = 2.0
MAX_GROWTH_MIB = 440
"""Eight bytes for each of 50 megapixels, which are 381 MiB, and some for what decoding keeps in work."""
MAX_KEPT_MIB = 240
"""What may be left of all of them: activations, and pieces of pictures that are too small to go back to the system."""


@pytest.fixture(scope="module")
def pictures() -> list[Hostile]:
    return [*hostile_images(), *hostile_jpegs(), *hostile_variants()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    package = save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")
    with served("--model", "acme/digits", cwd=package.parent.parent) as running:
        running.wait_until_ready()
        yield running


def post(service: Served, hostile: Hostile) -> int:
    answer = service.client.post("/v1/classify", content=hostile.data)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"code", "message", "hint", "request_id"}, hostile.name
    return answer.status_code


def test_there_are_hundreds_and_no_two_are_alike(pictures: list[Hostile]) -> None:
    assert len(pictures) > 600
    assert len({hostile.name for hostile in pictures}) == len(pictures)


def test_each_gets_a_right_status_for_little_time_and_memory(service: Served, pictures: list[Hostile]) -> None:
    service.client.post("/v1/classify", content=encode(scene(), "PNG")).raise_for_status()
    start_mib, wrong, costly = service.forget_peak(), [], []
    for hostile in pictures:
        begun_s, begun_mib = service.cpu_s(), service.forget_peak()
        status = post(service, hostile)
        if status not in hostile.statuses:
            wrong.append(f"{hostile.name}: {status}, not {sorted(hostile.statuses)}")
        if service.cpu_s() - begun_s > MAX_CPU_S or service.peak_mib() - begun_mib > MAX_GROWTH_MIB:
            costly.append(
                f"{hostile.name}: {service.cpu_s() - begun_s:.1f} s, {service.peak_mib() - begun_mib:.0f} MiB"
            )
        assert service.client.get("/healthz").status_code == 200, hostile.name
    assert wrong == []
    assert costly == []
    assert service.forget_peak() - start_mib < MAX_KEPT_MIB
    assert service.client.get("/readyz").status_code == 200


def test_many_at_once_spoil_no_good_picture(service: Served, pictures: list[Hostile]) -> None:
    good = Hostile("good", encode(scene(), "JPEG"), frozenset({200}))
    # Those of very many pixels go one after the other, and many at once would be late.
    small = [hostile for hostile in pictures if len(hostile.data) < 2**20 and "megapixels" not in hostile.name]
    mixed = [one for hostile in small for one in (hostile, good)]
    is_over, probes = threading.Event(), set[int]()

    def probe() -> None:
        while not is_over.is_set():
            probes.update(service.client.get(path).status_code for path in ("/healthz", "/readyz"))

    with ThreadPoolExecutor(9) as callers:
        probing = callers.submit(probe)
        try:
            statuses = list(callers.map(lambda hostile: post(service, hostile), mixed))
        finally:
            is_over.set()
        probing.result()
    assert probes == {200}
    assert [one.name for one, status in zip(mixed, statuses, strict=True) if status not in one.statuses] == []
    assert "eca_body_bytes 0" in service.client.get("/metrics").text


@pytest.mark.parametrize("content_type", ["image/png", "image/svg+xml", "image/x-icon", "application/octet-stream"])
def test_what_it_is_called_does_not_matter(service: Served, pictures: list[Hostile], content_type: str) -> None:
    for hostile in pictures[::20]:
        answer = service.client.post("/v1/classify", content=hostile.data, headers={"content-type": content_type})
        assert answer.status_code in hostile.statuses, hostile.name


def test_in_a_form_and_in_json_they_fare_the_same(service: Served, pictures: list[Hostile]) -> None:
    for hostile in pictures[::15]:
        form = service.client.post("/v1/classify", files={"file": ("../../cat.png", hostile.data, "image/png")})
        text = {"images": [base64.b64encode(hostile.data).decode()]}
        assert form.status_code in hostile.statuses, hostile.name
        assert service.client.post("/v1/classify", json=text).status_code in hostile.statuses, hostile.name
