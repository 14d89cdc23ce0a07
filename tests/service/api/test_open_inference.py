"""The Open Inference Protocol, over plain HTTP and with the client of Triton."""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import eca_hub
from eca_hub import EcaHubError
from eca_service.api import open_inference_codec
from eca_service.api.open_inference_codec import InferRequest, parse_infer_request
from eca_service.api.schemas import InferResponse, V2Error, V2Model
from eca_service.errors import InvalidRequest
from eca_service.http.strict_json import decode_base64
from tests.service.app_fixtures import app_with
from tests.service.fakes import REVISION, png
from tests.service.server_process import Served, save_tiny_package, served

URL = "/v2/models/acme/digits"


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        yield client


def refusal(response: Any, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = V2Error.model_validate(response.json())
    assert error.code == code
    assert error.request_id == response.headers["x-request-id"]
    return error.error


def image(*contents: bytes, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(content).decode() for content in contents]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(contents)], "data": data} | changes]}


def binary(document: dict[str, Any], raw: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(document).encode()
    return head + raw, {"inference-header-content-length": str(len(head))}


def elements(*contents: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def test_server_and_model_describe_themselves(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "eca-hub"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in (URL, f"{URL}/versions/{REVISION}"):
        described = client.get(path)
        V2Model.model_validate(described.json())
        assert described.json()["versions"] == [REVISION]
        assert described.json()["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}]
        assert client.get(f"{path}/ready").json() == {"name": "acme/digits", "ready": True}


def test_json_in_and_json_out(client: TestClient) -> None:
    for path in (f"{URL}/infer", f"{URL}/versions/{REVISION}/infer"):
        response = client.post(path, json={"id": "mine-1"} | image(b"7", b"8"))
        assert response.status_code == 200, response.text
        InferResponse.model_validate(response.json())
        assert response.json()["id"] == "mine-1"
        assert response.json()["model_version"] == REVISION
        (output,) = response.json()["outputs"]
        assert output["shape"] == [2, 10]
        assert output["data"] == pytest.approx([1 / (index + 1) for index in range(10)] * 2)


@pytest.mark.parametrize("request_id", ["a b", "job:17/3", "Größe <1>\n", "x" * 256, ""])
def test_the_id_of_a_request_is_any_text(client: TestClient, request_id: str) -> None:
    for wants_bytes in (False, True):
        parameters = {"binary_data_output": wants_bytes}
        response = client.post(f"{URL}/infer", json={"id": request_id, "parameters": parameters} | image(b"7"))
        assert response.status_code == 200, response.text
        length = int(response.headers.get("inference-header-content-length", len(response.content)))
        assert json.loads(response.content[:length]).get("id", "") == request_id


def test_bytes_in_and_bytes_out(client: TestClient) -> None:
    document = {
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": 10}},
        ],
        "parameters": {"binary_data_output": True},
    }
    body, headers = binary(document, elements(b"7", b"8"))
    response = client.post(f"{URL}/infer", content=body, headers=headers)
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == 80
    assert struct.unpack("<20f", response.content[length:])[:2] == (1.0, 0.5)


def test_pixels_need_no_decoding(client: TestClient) -> None:
    shape = [1, 3, 32, 32]
    row = [[[7] * 32] * 32] * 3
    tensor: dict[str, Any]
    for data in ([row], [7] * 3 * 32 * 32):
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}
        assert client.post(f"{URL}/infer", json={"inputs": [tensor]}).status_code == 200
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": 3072}}
    body, headers = binary({"inputs": [tensor]}, bytes(3072))
    assert client.post(f"{URL}/infer", content=body, headers=headers).status_code == 200


def test_pixels_of_a_gray_model_have_one_channel() -> None:
    with TestClient(app_with("acme/digits", num_channels=1), raise_server_exceptions=False) as client:
        for num_channels, status in ((1, 200), (3, 422)):
            size = num_channels * 32 * 32
            tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, num_channels, 32, 32], "data": [7] * size}
            response = client.post(f"{URL}/infer", json={"inputs": [tensor]})
            assert response.status_code == status, response.text
        assert "[1, 1, 32, 32]" in refusal(response, 422, "invalid_request")


def test_the_top_classes_can_be_requested_by_name(client: TestClient) -> None:
    for wants_bytes in (False, True):
        wanted = {"name": "scores", "parameters": {"classification": 2, "binary_data": wants_bytes}}
        response = client.post(f"{URL}/infer", json=image(b"7") | {"outputs": [wanted]})
        words = [b"1.000000:0:class 0", b"0.500000:1:class 1"]
        if wants_bytes:
            assert response.content.endswith(elements(*words))
        else:
            assert response.json()["outputs"][0]["data"] == [word.decode() for word in words]


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (image(b"broken"), "not_an_image"),
        (image(b"7", b"broken"), "not_an_image"),
        (image(b"7" * 20_000), "too_large"),
        (image(b"7", data=["?"]), "invalid_request"),
        (image(b"7", data=[7]), "invalid_request"),
        (image(b"7", data=None), "invalid_request"),
        (image(b"7", shape=[2]), "invalid_request"),
        (image(b"7", shape=[0]), "invalid_request"),
        (image(b"7", shape=[-1]), "invalid_request"),
        (image(b"7", shape=[]), "invalid_request"),
        (image(b"7", datatype="FP32"), "invalid_request"),
        (image(b"7", name="SENTINEL"), "invalid_request"),
        (image(b"7", parameters={"binary_data_size": 4}), "invalid_request"),
        (image(*[b"7"] * 7), "invalid_request"),
        (image(b"7") | {"id": "SENTINEL" * 40}, "invalid_request"),
        (image(b"7") | {"outputs": [{"name": "SENTINEL"}]}, "invalid_request"),
        ({"inputs": []}, "invalid_request"),
        ({"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 9, 9], "data": []}]}, "invalid_request"),
        (
            {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [256] * 3072}]},
            "invalid_request",
        ),
        (
            {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [[[[[7]]]]]}]},
            "invalid_request",
        ),
    ],
)
def test_an_invalid_request_is_refused_in_a_sentence(client: TestClient, document: dict[str, Any], code: str) -> None:
    response = client.post(f"{URL}/infer", json=document)
    sentence = refusal(response, 413 if code == "too_large" else 422, code)
    assert sentence
    assert "SENTINEL" not in response.text


@pytest.mark.parametrize(
    ("length", "raw", "size"),
    [
        ("x", b"", 0),
        ("-1", b"", 0),
        ("99999", b"", 0),
        (None, elements(b"7"), 4),
        (None, elements(b"7"), 6),
        (None, elements(b"7")[:-1], 4),
        (None, b"\xff\xff\xff\xff7", 5),
        (None, b"\x00\x00", 2),
        (None, b"", 0),
    ],
)
def test_bytes_that_contradict_their_header_are_refused(
    client: TestClient, length: str | None, raw: bytes, size: int
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    body, headers = binary({"inputs": [tensor]}, raw)
    if length is not None:
        headers = {"inference-header-content-length": length}
    refusal(client.post(f"{URL}/infer", content=body, headers=headers), 422, "invalid_request")


def test_an_unknown_model_or_version_is_refused_in_a_sentence(client: TestClient) -> None:
    for path in (
        "/v2/models/acme/other",
        "/v2/models/acme/other/ready",
        f"{URL}/versions/2",
        f"{URL}/versions/2/ready",
    ):
        refusal(client.get(path), 404, "model_not_loaded")
    refusal(client.post("/v2/models/acme/other/infer", json=image(b"7")), 404, "model_not_loaded")
    refusal(client.post(f"{URL}/infer", content=b"{"), 400, "bad_json")
    refusal(client.get("/v2/nothing"), 404, "not_found")
    refusal(client.delete(URL), 405, "method_not_allowed")


def test_only_paths_of_the_protocol_get_its_errors(client: TestClient) -> None:
    assert isinstance(client.get("/v2/nothing").json()["error"], str)
    assert isinstance(client.post("/v2").json()["error"], str)
    for path in ("/v2foo", "/v20/models"):
        assert client.get(path).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, 256, -1])
def test_a_pixel_is_an_integer_from_0_to_255(client: TestClient, value: object) -> None:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [value] + [0] * (3 * 32 * 32 - 1)}
    refusal(client.post(f"{URL}/infer", json={"inputs": [tensor]}), 422, "invalid_request")


def parsed(document: bytes, raw: bytes = b"") -> InferRequest:
    return parse_infer_request(document + raw, str(len(document)), image_shape=(3, 32, 32), max_images=6)


def test_of_many_images_only_the_first_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splitting 31 MiB of empty elements took 2 s of CPU time."""
    decoded: list[str] = []

    def decode(text: str) -> bytes | EcaHubError:
        decoded.append(text)
        return decode_base64(text)

    monkeypatch.setattr(open_inference_codec, "decode_base64", decode)
    for text in ("!", "QQ=="):
        decoded.clear()
        tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [text] * 20_000}
        with pytest.raises(InvalidRequest):
            parsed(json.dumps({"inputs": [tensor]}).encode())
        assert len(decoded) <= 3
    size = {"binary_data_size": 8 * 2**20}
    binary_tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "parameters": size}
    with pytest.raises(InvalidRequest, match="number of images"):
        parsed(json.dumps({"inputs": [binary_tensor]}).encode(), bytes(8 * 2**20))


def test_a_million_pixels_are_numbers_and_their_rows_not_objects_or_strings() -> None:
    """Objects took 300 bytes each, of 9 bytes of JSON."""
    before, after = b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[6,3,32,32],"data":[', b"]}]}"
    rows = [[[[7] * 32] * 32] * 3] * 6
    assert len(parsed(before + json.dumps(rows)[1:-1].encode() + after).images) == 6
    with pytest.raises(InvalidRequest, match="number of pixels"):
        parsed(before + b",".join([b"7"] * 900_000) + after)
    for element in (b"{}", b'{"a":1}', b'[{"a":1}]', b"[]", b'"ab"'):
        with pytest.raises(InvalidRequest, match="far more elements"):
            parsed(before + b",".join([element] * 60_000) + after)


def test_a_key_is_required() -> None:
    with TestClient(app_with("acme/digits", keys=["one"])) as client:
        refusal(client.post(f"{URL}/infer", json=image(b"7")), 401, "unauthorized")
        refusal(client.get(URL), 401, "unauthorized")
        assert client.get("/v2/health/live").status_code == 200


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_package(tmp_path_factory.mktemp("models") / "acme" / "digits")


@pytest.fixture(scope="module")
def service(package: Path) -> Iterator[Served]:
    pytest.importorskip("tritonclient.http")
    with served("--model", "acme/digits", cwd=package.parent.parent) as running:
        running.wait_until_ready()
        yield running


def scores_by_index(predictions: Sequence[eca_hub.Prediction]) -> list[float]:
    return [one.score for one in sorted(predictions, key=lambda one: one.index)]


@pytest.mark.slow
@pytest.mark.parametrize("as_bytes", [True, False])
def test_the_client_of_triton_works(service: Served, package: Path, as_bytes: bool) -> None:
    numpy = pytest.importorskip("numpy")
    triton = pytest.importorskip("tritonclient.http")
    classifier = eca_hub.Classifier.from_pretrained(package)
    contents = [png(40, 30, color) for color in ("red", "teal", "white")]
    expected = [scores_by_index(row) for row in classifier.predict(contents, top_k=10)]
    client = triton.InferenceServerClient(service.url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("acme/digits")
        assert not client.is_model_ready("acme/other")
        assert client.get_server_metadata()["name"] == "eca-hub"
        described = client.get_model_metadata("acme/digits")["inputs"][0]
        assert described == {"name": "image", "datatype": "BYTES", "shape": [-1]}

        sent = contents if as_bytes else [base64.b64encode(content) for content in contents]
        images = triton.InferInput("image", [3], "BYTES")
        images.set_data_from_numpy(numpy.array(sent, dtype=object), binary_data=as_bytes)
        scores = triton.InferRequestedOutput("scores", binary_data=as_bytes)
        for outputs in (None, [scores]):
            found = client.infer("acme/digits", [images], outputs=outputs, request_id="mine").as_numpy("scores")
            assert found.dtype == numpy.float32
            assert found == pytest.approx(numpy.array(expected), abs=1e-4)

        pixels_N3HW = numpy.stack(
            [classifier.transform.resize_and_crop(eca_hub.decode_image(content)).numpy() for content in contents]
        )
        pixels = triton.InferInput("pixels", list(pixels_N3HW.shape), "UINT8")
        pixels.set_data_from_numpy(pixels_N3HW, binary_data=as_bytes)
        assert client.infer("acme/digits", [pixels]).as_numpy("scores") == pytest.approx(
            numpy.array(expected), abs=1e-4
        )

        named = triton.InferRequestedOutput("scores", binary_data=as_bytes, class_count=2)
        words = client.infer("acme/digits", [images], outputs=[named]).as_numpy("scores")
        first = words[0][0].decode() if isinstance(words[0][0], bytes) else words[0][0]
        assert first.split(":")[2] == classifier.predict(contents[0])[0].label

        broken = triton.InferInput("image", [1], "BYTES")
        broken.set_data_from_numpy(numpy.array([b"broken"], dtype=object))
        with pytest.raises(triton.InferenceServerException, match=r"\[422\] ") as refused:
            client.infer("acme/digits", [broken])
        assert "image" in str(refused.value) or "image" in str(refused.value).lower()
    finally:
        client.close()
