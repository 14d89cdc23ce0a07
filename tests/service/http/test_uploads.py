"""Finding images in bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eca_hub import EcaHubError
from eca_service.errors import BadMultipart, BodyTooLarge, InvalidRequest, UnsupportedType
from eca_service.http.uploads import UploadLimits, parse_hf_request, parse_images

LIMITS = UploadLimits(max_image_bytes=100, max_images=3, max_request_bytes=1000)
FORM = "multipart/form-data; boundary=xyz"


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.png"') -> bytes:
    head = f"--xyz\r\nContent-Disposition: {disposition}\r\nContent-Type: image/png\r\n\r\n"
    return head.encode() + content + b"\r\n"


def form(*contents: bytes) -> bytes:
    return b"".join(map(part, contents)) + b"--xyz--\r\n"


@pytest.mark.parametrize(
    "content_type", ["", "image/jpeg", "IMAGE/x-anything", "application/octet-stream; charset=x", "image/svg+xml"]
)
def test_the_body_itself_is_an_image(content_type: str) -> None:
    assert parse_images(b"bytes", content_type, LIMITS) == [b"bytes"]


def test_the_default_content_type_of_curl_is_an_image() -> None:
    assert parse_images(b"bytes", "application/x-www-form-urlencoded", LIMITS) == [b"bytes"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/pdf", "multipart/mixed; boundary=xyz", "imagejpeg"]
)
def test_other_types_are_not_supported(content_type: str) -> None:
    with pytest.raises(UnsupportedType):
        parse_images(b"bytes", content_type, LIMITS)
    with pytest.raises(UnsupportedType, match=r"Send the bytes of an image as image/\*, or JSON"):
        parse_hf_request(b"bytes", content_type, LIMITS)


def test_a_form_holds_its_files_in_order() -> None:
    assert parse_images(form(b"one", b"", b"t\r\n--xy\r\n\r\nhree"), FORM, LIMITS) == [
        b"one",
        b"",
        b"t\r\n--xy\r\n\r\nhree",
    ]


def test_a_form_may_have_a_preamble_an_epilogue_and_a_quoted_boundary() -> None:
    body = b"preamble\r\n" + form(b"one") + b"epilogue"
    assert parse_images(body, 'multipart/form-data; charset=x; boundary="xyz"', LIMITS) == [b"one"]


def test_a_file_that_is_too_large_fails_alone() -> None:
    small, large = parse_images(form(b"one", b"x" * 101), FORM, LIMITS)
    assert small == b"one"
    assert isinstance(large, BodyTooLarge)


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="image"; filename="a.png"',
        'form-data; name="file"',
        'form-data; filename="; name=file"',
        'form-data; filename="a\\"; name=\\"file"',
        "form-data",
    ],
)
def test_only_files_named_file_are_taken(disposition: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_images(part(b"x", disposition) + b"--xyz--", FORM, LIMITS)


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\x", "a\\\\b", "\x00", "ü" * 300, "a;b", "", 'a\\"b'])
def test_file_names_do_not_matter(name: str) -> None:
    body = part(b"x", f'form-data; name="file"; filename="{name}"') + b"--xyz--"
    assert parse_images(body, FORM, LIMITS) == [b"x"]


def test_a_file_name_need_not_be_utf_8() -> None:
    latin = part(b"x", 'form-data; name="file"; filename="k\u00e4se.png"').replace("\u00e4".encode(), b"\xe4")
    assert b"k\xe4se" in latin
    assert parse_images(latin + b"--xyz--", FORM, LIMITS) == [b"x"]


def test_too_many_files_are_refused_whole() -> None:
    assert len(parse_images(form(*[b"x"] * 3), FORM, LIMITS)) == 3
    for surplus in (1, 2, 2000):
        with pytest.raises(InvalidRequest, match="more than 3"):
            parse_images(form(*[b"x"] * (3 + surplus)), FORM, LIMITS)


def test_a_form_without_files_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no files"):
        parse_images(b"--xyz--\r\n", FORM, LIMITS)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        f"multipart/form-data; boundary={'x' * 200}",
        "multipart/form-data; boundary=xüz",
        'multipart/form-data; boundary="x\\\\z"',
    ],
)
def test_a_boundary_must_be_valid(content_type: str) -> None:
    with pytest.raises(BadMultipart):
        parse_images(form(b"x"), content_type, LIMITS)


@pytest.mark.parametrize("length", range(len(form(b"image")) - 3))
def test_a_truncated_form_is_never_accepted(length: int) -> None:
    with pytest.raises(BadMultipart):
        parse_images(form(b"image")[:length], FORM, LIMITS)


def test_a_part_with_huge_headers_is_refused() -> None:
    with pytest.raises(BadMultipart):
        parse_images(part(b"x", f'form-data; name="file"; filename="{"a" * 5000}"') + b"--xyz--", FORM, LIMITS)


@given(st.binary(max_size=60), st.lists(st.binary(max_size=20), max_size=4), st.binary(max_size=10))
def test_a_random_body_is_parsed_or_refused(before: bytes, contents: list[bytes], after: bytes) -> None:
    try:
        images = parse_images(before + form(*contents) + after, FORM, LIMITS)
    except EcaHubError:
        return
    assert len(images) <= 3
