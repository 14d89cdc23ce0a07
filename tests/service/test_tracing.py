"""OpenTelemetry spans: kept in memory, and as a collector receives them."""

import gzip
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from eca_hub import EcaHubError
from eca_service.app import create_app
from eca_service.http.auth import ApiKeys
from eca_service.inference.types import ImageResult
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from eca_service.settings import Settings
from eca_service.tracing import Tracing, open_tracing, service_resource
from tests.service.app_fixtures import settings_with
from tests.service.fakes import fake_model

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}


def app_with_tracing(tracing: Tracing) -> FastAPI:
    """An app with a fake model."""

    async def open_fake(source: ModelSource) -> object:
        return fake_model(model_id=source.id_or_folder)

    registry = Registry([ModelSource("acme/digits")], open_fake)  # type: ignore[arg-type]
    return create_app(settings_with("acme/digits"), registry, ApiKeys(), tracing=tracing)


class Recorded:
    """An app whose spans are kept."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)
        self.app = app_with_tracing(self.tracing)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_a_request_has_a_span_with_those_of_its_image(recorded: Recorded) -> None:
    with TestClient(recorded.app) as client:
        response = client.post("/v1/classify", content=b"7", headers=PARENT)
    timing_ms = response.json()["timing_ms"]
    *parts, request = recorded.spans
    assert [span.name for span in parts] == ["queue", "decode", "queue", "engine"]
    assert request.name == "POST /v1/classify"
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["eca.request_id"] == response.headers["x-request-id"]
    for span in parts:
        assert span.parent is not None
        assert request.context is not None
        assert span.parent.span_id == request.context.span_id
        assert span.attributes == {"eca.model": "acme/digits", "eca.batch_size": 1}
    lengths_ms = {"queue": 0.0}
    for span in parts:
        assert span.end_time is not None
        assert span.start_time is not None
        lengths_ms[span.name] = lengths_ms.get(span.name, 0.0) + (span.end_time - span.start_time) / 1e6
    assert lengths_ms == pytest.approx({name: timing_ms[name] for name in lengths_ms}, abs=0.01)
    ends = [span.end_time for span in parts]
    assert [span.start_time for span in parts[1:]] == ends[:-1], "one after the other"


def test_the_traceparent_of_the_client_is_the_parent(recorded: Recorded) -> None:
    with TestClient(recorded.app) as client:
        client.post("/v1/classify", content=b"7", headers=PARENT)
    request = recorded.spans[-1]
    assert request.parent is not None
    assert f"{request.parent.trace_id:032x}" == TRACE_ID
    assert f"{request.parent.span_id:016x}" == SPAN_ID


def test_a_client_that_does_not_sample_gets_no_spans(recorded: Recorded) -> None:
    with TestClient(recorded.app) as client:
        client.post("/v1/classify", content=b"7", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
    assert not recorded.spans


@pytest.mark.parametrize("header", ["", "00-xyz-1-01", "00-" + "0" * 32 + f"-{SPAN_ID}-01", "\u00ff" * 200])
def test_a_malformed_traceparent_begins_a_new_trace(recorded: Recorded, header: str) -> None:
    with TestClient(recorded.app) as client:
        response = client.post("/v1/classify", content=b"7", headers={b"traceparent": header.encode("latin-1")})
    assert response.status_code == 200
    assert recorded.spans[-1].parent is None


def test_each_image_of_a_request_has_its_spans_and_an_invalid_one_has_none(recorded: Recorded) -> None:
    with TestClient(recorded.app) as client:
        client.post("/v1/classify", files=[("file", ("a", content, "image/png")) for content in (b"1", b"bad", b"3")])
    assert [span.name for span in recorded.spans].count("engine") == 2


@pytest.mark.parametrize("prefix", ["", "/vision"])
def test_probes_have_no_spans_and_errors_have_a_status(recorded: Recorded, prefix: str) -> None:
    with TestClient(recorded.app, raise_server_exceptions=False, root_path=prefix) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(f"{prefix}{path}").status_code == 200
        assert not recorded.spans
        client.get(f"{prefix}/SENTINEL")
        client.post(f"{prefix}/v1/classify", content=b"broken")
    assert [span.name for span in recorded.spans] == ["GET none", "POST /v1/classify"], "the path is the client's text"
    codes = [span.attributes["http.response.status_code"] for span in recorded.spans if span.attributes]
    assert codes == [404, 422]


def test_the_access_log_has_the_trace_of_a_request(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "eca_service.access"), TestClient(recorded.app) as client:
        client.post("/v1/classify", content=b"7")
    fields = caplog.records[-1].fields  # type: ignore[attr-defined]
    context = recorded.spans[-1].context
    assert context is not None
    assert fields["trace_id"] == f"{context.trace_id:032x}"


def test_outside_of_a_request_nothing_is_recorded(recorded: Recorded) -> None:
    recorded.tracing.record_images("acme/digits", [ImageResult(0, 1.0, 1.0, 1.0, 3.0, 1)])
    assert not recorded.spans


@pytest.mark.slow
def test_without_an_endpoint_the_sdk_of_opentelemetry_is_not_imported() -> None:
    script = (
        "import sys, eca_service.app as app, eca_service.__main__\n"
        "from eca_service.settings import Settings\nfrom eca_service.http.auth import ApiKeys\n"
        "app.open_app(Settings(model=('acme/a',)), [], ApiKeys())\n"
        "print([name for name in sys.modules if name in ('eca_service.tracing', 'opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Collector(ThreadingHTTPServer):
    """Receives OTLP over HTTP, as a collector does on port 4318: protobuf, which may be compressed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _OTLPHandler)
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Span]:
        scopes = [scope for one in self.requests for each in one.resource_spans for scope in each.scope_spans]
        return [span for scope in scopes for span in scope.spans]


class _OTLPHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        is_otlp = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        if is_otlp:
            self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if is_otlp else 400)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_collector_receives_the_spans_of_a_request_as_protobuf() -> None:
    with collector() as received:
        tracing = open_tracing(f"http://127.0.0.1:{received.server_address[1]}/")
        with TestClient(app_with_tracing(tracing), raise_server_exceptions=False) as client:
            client.post("/v1/classify", content=b"7", headers=PARENT)
            client.get("/v1/models/none")
        # The end of the app sends what is left.
        spans, [resource] = received.spans, {str(one.resource_spans[0].resource) for one in received.requests}
    assert "eca-hub" in resource
    assert [span.name for span in spans if span.trace_id.hex() == TRACE_ID] == [
        "queue", "decode", "queue", "engine", "POST /v1/classify",
    ]  # fmt: skip
    *parts, request = spans[:5]
    assert request.parent_span_id.hex() == SPAN_ID
    assert request.kind == Span.SPAN_KIND_SERVER
    for span in parts:
        assert span.parent_span_id == request.span_id
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    attributes = {one.key: one.value for one in request.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["http.route"].string_value == "/v1/classify"
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert spans[-1].trace_id.hex() != TRACE_ID


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", "http://a b"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with pytest.raises(EcaHubError, match="--otlp_endpoint must be an address such as http://collector:4318"):
        Settings(model=("acme/a",), otlp_endpoint=endpoint)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "eca-hub"),
        ({"OTEL_SERVICE_NAME": "vision"}, "vision"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=vision,deployment.environment=test"}, "vision"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"}, "eca-hub"),
    ],
)
def test_the_name_of_the_service_is_the_operators(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    attributes = service_resource().attributes
    assert attributes["service.name"] == name
    assert ("deployment.environment" in attributes) is ("OTEL_RESOURCE_ATTRIBUTES" in variables)
