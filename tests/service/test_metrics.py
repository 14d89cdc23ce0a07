"""What is counted, and how it is written down."""

import re

from starlette.testclient import TestClient

from eca_service.metrics import Counter, Histogram, Metrics
from tests.service.test_routes import app_with


def test_a_counter_has_a_line_for_each_combination_of_labels() -> None:
    counter = Counter("eca_x_total", "X.", ("model",))
    for model in ("b", "a", "b", 'q"\n\\'):
        counter.add(model)
    assert list(counter.lines()) == [
        'eca_x_total{model="a"} 1',
        'eca_x_total{model="b"} 2',
        'eca_x_total{model="q\\"\\n\\\\"} 1',
    ]


def test_a_histogram_counts_up() -> None:
    histogram = Histogram("eca_y", "Y.", (), (1, 2))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert list(histogram.lines()) == [
        'eca_y_bucket{le="1"} 2',
        'eca_y_bucket{le="2"} 3',
        'eca_y_bucket{le="+Inf"} 4',
        "eca_y_sum 12.000000",
        "eca_y_count 4",
    ]


def test_two_apps_do_not_add_up() -> None:
    first, second = Metrics(), Metrics()
    first.received.add()
    assert "eca_requests_received_total 1" in first.render([])
    assert "eca_requests_received_total 1" not in second.render([])


def test_every_request_is_counted_once_when_it_comes_and_once_when_it_ends() -> None:
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        for content in (b"1", b"2", b"broken", b"7" * 20_000):
            client.post("/v1/classify", content=content)
        client.get("/SENTINEL/a")
        client.get("/SENTINEL/b")
        text = client.get("/metrics").text
    assert "eca_requests_received_total 7" in text
    ended = {
        (route, code): int(count)
        for route, code, count in re.findall(r'eca_requests_total{route="(.*?)",code="(.*?)"} (\d+)', text)
    }
    assert ended == {
        ("/v1/classify", "200"): 2,
        ("/v1/classify", "422"): 1,
        ("/v1/classify", "413"): 1,
        ("none", "404"): 2,
    }
    assert "SENTINEL" not in text
    assert 'eca_batch_size_count{model="acme/digits"} 2' in text
    assert 'eca_images{model="acme/digits"} 0' in text
    assert 'eca_images_bound{model="acme/digits"} 8' in text
    assert 'eca_wait_seconds{model="acme/digits"} 0' in text
    assert 'eca_wait_seconds_bound{model="acme/digits"} 60' in text
    assert "eca_models_ready 1" in text


def test_the_text_is_what_prometheus_reads() -> None:
    with TestClient(app_with("acme/digits")) as client:
        client.post("/v1/classify", content=b"1")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'eca_\w+(\{(\w+="([^"\\]|\\.)*",?)+\})? [-+0-9.e]+')
    typed = set()
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            assert line.split()[2] not in typed, "the samples of one name stand together"
            typed.add(line.split()[2])
        elif not line.startswith("# HELP "):
            assert sample.fullmatch(line), line
