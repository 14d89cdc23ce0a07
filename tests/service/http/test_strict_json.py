"""Strict JSON."""

import base64
import json

import pytest

from eca_service.errors import BadJson, InvalidRequest
from eca_service.http.strict_json import parse_hf_json, parse_images_json

PACKED = base64.b64encode(b"image").decode()


def test_images_are_returned_in_order() -> None:
    body = json.dumps({"images": [PACKED, base64.b64encode(b"other").decode()]}).encode()
    assert parse_images_json(body) == [b"image", b"other"]


def test_a_request_in_hugging_faces_shape_has_an_image_and_options() -> None:
    request = parse_hf_json(json.dumps({"inputs": PACKED}).encode())
    assert request.image == b"image"
    assert request.parameters.model_dump(exclude_none=True) == {}
    parameters = {"top_k": 3, "function_to_apply": "sigmoid"}
    request = parse_hf_json(json.dumps({"inputs": PACKED, "parameters": parameters}).encode())
    assert request.parameters.model_dump(exclude_none=True) == parameters
    request = parse_hf_json(json.dumps({"inputs": PACKED, "parameters": {"threshold": 1}}).encode())
    assert request.parameters.threshold == 1.0
    assert parse_hf_json(json.dumps({"inputs": PACKED, "parameters": None}).encode()).parameters.top_k is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xd8\xff\xe0 an image",
        b"\xef\xbb\xbf{}",
        '{"images": []}'.encode("utf-16"),
        b'{"images": ["\xff"]}',
        b'{"images": NaN}',
        b'{"images": Infinity}',
        b'{"images": -Infinity}',
        b'{"images": ' + b"9" * 5000 + b"}",
        b"[" * 15_000,
        b'{"a":' * 15_000,
        b'{"images": ["QQ=="], "images": ["QQ=="]}',
        b'{"images": ["QQ=="]} trailing',
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadJson):
        parse_images_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"1",
        b"null",
        b"1e400",
        b'"text"',
        b"{}",
        b'{"images": null}',
        b'{"images": []}',
        b'{"images": "QQ=="}',
        b'{"images": [1]}',
        b'{"images": [1e400]}',
        b'{"images": [null]}',
        b'{"images": [["QQ=="]]}',
        b'{"images": ["QQ=="], "SENTINEL": 1}',
        b'{"images": ["QQ=="], "\\ud800": 1}',
        b'{"images": [' + b"1," * 2**20 + b"1]}",
        b'{"images": [' + b'"",' * 2**20 + b"1]}",
        b"{" + b",".join(b'"%d":1' % number for number in range(10**5)) + b"}",
    ],
)
def test_json_of_another_shape_is_refused_without_repeating_it(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_images_json(body)
    assert "SENTINEL" not in str(refusal.value)
    str(refusal.value).encode()


@pytest.mark.parametrize(
    "text",
    [
        "Q",
        "QQ",
        "QQ=",
        "QQ===",
        "Q Q==",
        "QQ\n==",
        "QUJD\n",
        "-_-_",
        "data:image/png;base64,QQ==",
        "é",
        "\ud800",
        "\x00",
    ],
)
def test_an_image_that_is_not_base64_fails_alone(text: str) -> None:
    bad, good = parse_images_json(json.dumps({"images": [text, PACKED]}).encode())
    assert isinstance(bad, InvalidRequest)
    assert good == b"image"


@pytest.mark.parametrize("top_k", ["true", "3.0", '"3"', "0", "-1", "2147483648", "1e400", "[]"])
def test_top_k_must_be_an_integer(top_k: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_hf_json(f'{{"inputs": "QQ==", "parameters": {{"top_k": {top_k}}}}}'.encode())


def test_other_options_are_refused() -> None:
    parameters: object
    for parameters in ({"function_to_apply": "relu"}, {"topk": 1}, []):
        with pytest.raises(InvalidRequest):
            parse_hf_json(json.dumps({"inputs": PACKED, "parameters": parameters}).encode())
