"""Pictures as strangers send them, one after the other and many at once, to the process that operators start."""

import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hostile_pictures import Hostile, hostile_pictures
from tests.picture_files import encode, scene
from tests.service.process import Served, save_tiny_package, served

MAX_CPU_S = 2.0
MAX_GROWTH_MIB = 600
"""Two copies of a picture of 50 megapixels at four bytes a pixel, and what the allocator keeps of the others."""


@pytest.fixture(scope="module")
def pictures() -> list[Hostile]:
    return list(hostile_pictures())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    package = save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")
    with served("--model", "acme/digits", cwd=package.parent.parent) as running:
        running.wait_until_ready()
        yield running


def cpu_s(service: Served) -> float:
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(service: Served) -> float:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def post(service: Served, hostile: Hostile) -> int:
    answer = service.client.post("/v1/classify", content=hostile.data)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"code", "message", "hint", "request_id"}, hostile.name
    return answer.status_code


def test_there_are_more_than_two_hundred_and_no_two_are_alike(pictures: list[Hostile]) -> None:
    assert len(pictures) > 206
    assert len({hostile.name for hostile in pictures}) == len(pictures)


def test_each_gets_a_right_status_for_little_time_and_memory(service: Served, pictures: list[Hostile]) -> None:
    service.client.post("/v1/classify", content=encode(scene(), "PNG")).raise_for_status()
    start_mib, wrong, slow = peak_mib(service), [], []
    for hostile in pictures:
        begun_s = cpu_s(service)
        status = post(service, hostile)
        if status not in hostile.statuses:
            wrong.append(f"{hostile.name}: {status}, not {sorted(hostile.statuses)}")
        if cpu_s(service) - begun_s > MAX_CPU_S:
            slow.append(hostile.name)
        assert service.client.get("/healthz").status_code == 200, hostile.name
    assert wrong == []
    assert slow == []
    assert peak_mib(service) - start_mib < MAX_GROWTH_MIB
    assert service.client.get("/readyz").status_code == 200


def test_many_at_once_spoil_no_good_picture(service: Served, pictures: list[Hostile]) -> None:
    good = Hostile("good", encode(scene(), "JPEG"), frozenset({200}))
    mixed = [one for hostile in pictures if len(hostile.data) < 2**20 for one in (hostile, good)]
    with ThreadPoolExecutor(8) as callers:
        statuses = list(callers.map(lambda hostile: post(service, hostile), mixed))
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
