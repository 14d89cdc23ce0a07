"""What /metrics shows."""

import re
import sys
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from eca_service.metrics import Metrics
from tests.service.app_fixtures import app_with
from tests.service.fakes import REVISION


def samples_of(text: str) -> dict[str, float]:
    """Name and labels of each sample -> its value."""
    return {
        sample.name + "".join(f" {label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_two_apps_do_not_add_up() -> None:
    first, second = Metrics(lambda: iter(())), Metrics(lambda: iter(()))
    with first.count_request():
        pass
    assert samples_of(first.render().decode())["eca_requests_received_total"] == 1
    assert samples_of(second.render().decode())["eca_requests_received_total"] == 0


def test_every_request_is_counted_once_when_it_arrives_and_once_when_it_ends() -> None:
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        for content in (b"1", b"2", b"broken", b"7" * 20_000):
            client.post("/v1/classify", content=content)
        client.get("/SENTINEL/a")
        client.get("/SENTINEL/b")
        text = client.get("/metrics").text
    samples = samples_of(text)
    assert samples["eca_requests_received_total"] == 7
    assert samples["eca_requests_in_flight"] == 1, "the one that reads the metrics"
    ended = {name.partition(" ")[2]: value for name, value in samples.items() if name.startswith("eca_requests_total")}
    assert ended == {
        "code=200 route=/v1/classify": 2,
        "code=422 route=/v1/classify": 1,
        "code=413 route=/v1/classify": 1,
        "code=404 route=none": 2,
    }
    assert "SENTINEL" not in text
    assert samples["eca_batch_size_count model=acme/digits"] == 2
    assert samples["eca_request_duration_seconds_count route=/v1/classify"] == 4
    assert samples["eca_images_in_flight model=acme/digits"] == 0
    assert samples["eca_images_in_flight_limit model=acme/digits"] == 8
    assert samples["eca_explanations_in_flight model=acme/digits"] == 0
    assert samples["eca_explanations_in_flight_limit model=acme/digits"] == 0
    assert samples["eca_wait_seconds model=acme/digits"] == 0
    assert samples["eca_wait_seconds_limit model=acme/digits"] == 60
    assert samples["eca_decode_wait_seconds lane=small"] == 0.5
    assert samples["eca_decode_wait_seconds_limit"] == 60
    assert samples["eca_models_ready"] == 1
    assert samples[f"eca_model_info model=acme/digits revision={REVISION}"] == 1
    assert samples["eca_model_load_seconds model=acme/digits"] >= 0


def test_each_revision_of_a_repository_has_series_of_its_own() -> None:
    with TestClient(app_with("acme/digits", "acme/digits@v1")) as client:
        for model_id, num_images in (("acme/digits@main", 1), ("acme/digits@v1", 2)):
            for _ in range(num_images):
                assert client.post(f"/v1/classify?model={model_id}", content=b"1").json()["model"] == model_id
        text = client.get("/metrics").text
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)), "Prometheus refuses a repeated sample"
    samples = samples_of(text)
    assert samples["eca_batch_size_count model=acme/digits@main"] == 1
    assert samples["eca_batch_size_count model=acme/digits@v1"] == 2
    assert samples["eca_images_in_flight_limit model=acme/digits@v1"] == 8


def test_the_gpus_of_which_torch_uses_no_memory_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mem_get_info(index: int) -> tuple[int, int]:
        asked.append(index)
        if index == 2:
            raise RuntimeError("the device is lost")
        return 1, 4

    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 3,
        memory_reserved=lambda index: index,
        memory_allocated=lambda index: 2,
        mem_get_info=mem_get_info,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    samples = samples_of(Metrics(lambda: iter(())).render().decode())
    assert {name: value for name, value in samples.items() if "gpu" in name} == {
        f"eca_gpu_memory_bytes device=cuda:1 kind={kind}": value
        for kind, value in {"allocated": 2, "free": 1, "total": 4}.items()
    }
    assert asked == [1, 2]


def test_temporary_refusals_are_counted_by_their_code() -> None:
    with TestClient(app_with("acme/absent"), raise_server_exceptions=False) as client:
        for path in ("/readyz", "/v1/classify", "/nowhere"):
            client.post(path, content=b"7") if path == "/v1/classify" else client.get(path)
        samples = samples_of(client.get("/metrics").text)
    assert samples["eca_requests_rejected_total code=not_ready"] == 2
    assert samples["eca_models_ready"] == 0


def test_the_text_is_what_prometheus_reads() -> None:
    with TestClient(app_with("acme/digits", max_bodies_mib=256)) as client:
        client.post("/v1/classify", content=b"1")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families["eca_images_cancelled"].type == "counter"
    assert families["process_resident_memory_bytes"].samples[0].value > 0
    assert families["eca_body_bytes_limit"].samples[0].value == 256 * 2**20, "every digit of a large number"
    for name, family in families.items():
        assert not (family.type == "gauge" and re.search("_(total|created)$", name)), name
        assert family.documentation, name
