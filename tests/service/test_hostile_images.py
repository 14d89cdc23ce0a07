"""Hostile images, one after the other and many at once, against a running service."""

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

pytestmark = pytest.mark.slow

MAX_CPU_S = 2.0
MAX_GROWTH_MIB = 440
"""Eight bytes for each of 50 megapixels, which are 381 MiB, and some for what decoding keeps in work."""
MAX_KEPT_MIB = 240
"""What may remain: activations, and freed blocks too small to return to the system."""


@pytest.fixture(scope="module")
def images() -> list[Hostile]:
    return [*hostile_images(), *hostile_jpegs(), *hostile_variants()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    package = save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")
    with served("--model", "acme/digits", cwd=package.parent.parent) as running:
        running.wait_until_ready()
        yield running


def post(service: Served, hostile: Hostile) -> int:
    response = service.client.post("/v1/classify", content=hostile.data)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"code", "message", "hint", "request_id"}, hostile.name
    return response.status_code


def test_there_are_many_and_no_two_are_alike(images: list[Hostile]) -> None:
    assert len(images) > 600
    assert len({hostile.name for hostile in images}) == len(images)


def test_each_gets_a_right_status_for_little_time_and_memory(service: Served, images: list[Hostile]) -> None:
    service.client.post("/v1/classify", content=encode(scene(), "PNG")).raise_for_status()
    start_mib, wrong, costly = service.forget_peak(), [], []
    for hostile in images:
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


def test_many_hostile_images_at_once_do_not_affect_a_good_one(service: Served, images: list[Hostile]) -> None:
    good = Hostile("good", encode(scene(), "JPEG"), frozenset({200}))
    # Those of very many pixels go one after the other, and many at once would be late.
    small = [hostile for hostile in images if len(hostile.data) < 2**20 and "megapixels" not in hostile.name]
    mixed = [one for hostile in small for one in (hostile, good)]
    is_over, probes = threading.Event(), set[int]()

    def probe() -> None:
        while not is_over.is_set():
            probes.update(service.client.get(path).status_code for path in ("/healthz", "/readyz"))

    with ThreadPoolExecutor(9) as clients:
        probing = clients.submit(probe)
        try:
            statuses = list(clients.map(lambda hostile: post(service, hostile), mixed))
        finally:
            is_over.set()
        probing.result()
    assert probes == {200}
    # Images that are costly to decode are refused for a while when many arrive at once; ordinary ones are not.
    allowed = [one.statuses if one is good else one.statuses | {429} for one in mixed]
    wrong = [one.name for one, status, each in zip(mixed, statuses, allowed, strict=True) if status not in each]
    assert wrong == []
    assert "eca_body_bytes 0" in service.client.get("/metrics").text


@pytest.mark.parametrize("content_type", ["image/png", "image/svg+xml", "image/x-icon", "application/octet-stream"])
def test_what_it_is_called_does_not_matter(service: Served, images: list[Hostile], content_type: str) -> None:
    for hostile in images[::5]:
        response = service.client.post("/v1/classify", content=hostile.data, headers={"content-type": content_type})
        assert response.status_code in hostile.statuses, hostile.name


def test_in_a_form_and_in_json_they_fare_the_same(service: Served, images: list[Hostile]) -> None:
    for hostile in images[::5]:
        form = service.client.post("/v1/classify", files={"file": ("../../cat.png", hostile.data, "image/png")})
        text = {"images": [base64.b64encode(hostile.data).decode()]}
        assert form.status_code in hostile.statuses, hostile.name
        assert service.client.post("/v1/classify", json=text).status_code in hostile.statuses, hostile.name
