"""Names of models as people type them, and errors of the client as ours."""

import socket

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from eca_hub.errors import HubError, HubUnavailable, InvalidConfig
from eca_hub.hub import push
from eca_hub.hub.client import hub_errors, is_on_this_machine, parse_model_id

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/x", ("acme/x", None)),
        ("acme/x@v1", ("acme/x", "v1")),
        ("acme/x@v1.0+cu118", ("acme/x", "v1.0+cu118")),
        ("acme/x@a@b", ("acme/x", "a@b")),
        ("_acme/_x@_y=z", ("_acme/_x", "_y=z")),
        ("hf-hub:acme/x", ("acme/x", None)),
        ("hf-hub:acme/x@main", ("acme/x", "main")),
        ("https://huggingface.co/acme/x", ("acme/x", None)),
        ("https://huggingface.co/acme/x/", ("acme/x", None)),
        ("https://hf.co/acme/x?library=timm#use", ("acme/x", None)),
        ("https://huggingface.co/acme/x/tree/v1", ("acme/x", "v1")),
        (f"https://huggingface.co/acme/x/blob/{COMMIT}/README.md", ("acme/x", COMMIT)),
        ("https://huggingface.co/acme/x/tree/feature%2Fx", ("acme/x", "feature/x")),
    ],
)
def test_every_spelling_of_a_model_is_understood(name: str, expected: tuple[str, str | None]) -> None:
    assert parse_model_id(name) == expected


def test_an_address_belongs_to_the_hub_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:8000/hub")
    assert parse_model_id("http://127.0.0.1:8000/hub/acme/x") == ("acme/x", None)
    with pytest.raises(InvalidConfig, match="is not an address of the hub at http://127"):
        parse_model_id("https://huggingface.co/acme/x")


def test_an_address_may_be_of_the_hub_that_is_given() -> None:
    page = "http://127.0.0.1:8000/acme/x/tree/v1"
    assert parse_model_id(page, endpoint="http://127.0.0.1:8000/") == ("acme/x", "v1")
    with pytest.raises(InvalidConfig, match=r"is not an address of the hub at https://huggingface.co\."):
        parse_model_id(page)
    with pytest.raises(InvalidConfig, match="is not an address of the hub at http://127"):
        parse_model_id("https://hf.co/acme/x", endpoint="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://huggingface.co/datasets/acme/x", "one of the hub's datasets"),
        ("https://example.org/acme/x", "is not an address of the hub"),
        ("acme/x@", "cannot be a revision"),
        ("acme/x@../main", "cannot be a revision"),
        ("acme/x@v1?x", "cannot be a revision"),
        ("acme/x@-v1", "cannot be a revision"),
        ("acme/x@a..b", "cannot be a revision"),
        ("acme/x@a//b", "cannot be a revision"),
        ("acme/x@a/.b", "cannot be a revision"),
        ("acme/x@a/", "cannot be a revision"),
        ("acme/x@v1.", "cannot be a revision"),
        (f"acme/x@{'v' * 257}", "cannot be a revision"),
        ("https://huggingface.co/acme/x/tree/..%2Fmain", "cannot be a revision"),
        ("nosuch", "neither a folder nor OWNER/NAME"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse_model_id(name)


@pytest.mark.parametrize("name", ["acme/x", "http://127.0.0.1:8000/acme/x"])
def test_an_endpoint_of_another_type_is_named(name: str) -> None:
    with pytest.raises(InvalidConfig, match="endpoint is 5; it must be the address of a hub"):
        parse_model_id(name, endpoint=5)  # type: ignore[arg-type]


def test_two_revisions_are_refused_if_they_differ() -> None:
    assert parse_model_id("acme/x@v1", "v1") == ("acme/x", "v1")
    with pytest.raises(InvalidConfig, match="names revision 'v1', but 'v2' is given too"):
        parse_model_id("acme/x@v1", "v2")


@pytest.mark.parametrize("revision", [5, b"main"])
def test_a_revision_of_another_type_is_named(revision: object) -> None:
    with pytest.raises(InvalidConfig, match=f"revision is {revision!r}; it must be a string"):
        parse_model_id("acme/x", revision)  # type: ignore[arg-type]


def test_a_hub_that_does_not_respond_to_a_push_is_not_looked_for_in_the_cache() -> None:
    with pytest.raises(HubUnavailable, match="the cache does not hold acme/x at main: refused"), hub_errors("acme/x"):
        raise httpx2.ConnectError("refused")
    with pytest.raises(HubUnavailable) as error, hub_errors("acme/x", is_push=True):
        raise httpx2.ConnectError("refused")
    assert error.value.message == "The hub does not respond: refused."


@pytest.mark.parametrize(
    ("proxies", "is_named"),
    [({}, True), ({"no": "localhost"}, True), ({"https": "http://proxy:3128", "no": "localhost"}, False)],
)
def test_a_host_that_is_not_known_is_named_unless_a_proxy_may_be_meant(
    proxies: dict[str, str], is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_hub.hub.client.getproxies", lambda: proxies)
    error = httpx2.ConnectError("not known", request=httpx2.Request("GET", "http://nosuch.invalid"))
    with pytest.raises(HubUnavailable) as refused, hub_errors("acme/x"):
        raise error from socket.gaierror(socket.EAI_NONAME, "not known")
    assert refused.value.message.startswith("The host nosuch.invalid is not known") is is_named


def test_a_socks_proxy_without_its_package_names_what_to_install() -> None:
    with pytest.raises(InvalidConfig, match=r"pip install 'httpx2\[socks\]'"), hub_errors("acme/x"):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")
    with pytest.raises(ImportError), hub_errors("acme/x"):
        raise ImportError("another package")


@pytest.mark.parametrize("error", [KeyError("sha"), AttributeError("'list' object has no attribute 'get'")])
def test_a_malformed_response_is_not_taken_for_a_bug(error: Exception) -> None:
    with pytest.raises(HubError, match="is not one of a hub"), hub_errors("acme/x"):
        raise error


def test_the_client_still_has_the_private_name_that_the_limits_use() -> None:
    has_factory = callable(getattr(_http, "_GLOBAL_CLIENT_FACTORY", None))
    assert has_factory, "huggingface_hub has renamed _GLOBAL_CLIENT_FACTORY: change http_limits._install_hooks."


@pytest.mark.parametrize(
    ("endpoint", "is_local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.1.2.3/hub", True),
        ("http://[::1]:8080", True),
        ("http://localhost:8080", True),
        ("https://huggingface.co", False),
        ("http://192.168.1.2:8080", False),
        ("http://127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_a_hub_is_on_this_machine_if_its_address_is_one_of_the_loopback(endpoint: str, is_local: bool) -> None:
    assert is_on_this_machine(endpoint) is is_local


def test_an_error_of_this_library_that_the_client_wraps_stays_what_it_is() -> None:
    cause = HubUnavailable("The hub asks to retry in 1000000000 seconds.")
    with pytest.raises(HubUnavailable) as raised, hub_errors("acme/x", is_push=True):
        raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from cause
    assert raised.value is cause


def test_a_token_file_that_cannot_be_read_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise PermissionError(13, "Permission denied", constants.HF_TOKEN_PATH)

    monkeypatch.setattr(push, "get_token", refuse)
    with pytest.raises(HubError, match="the token file of the hub's client, cannot be read: Permission denied"):
        push.check_push_access("acme/x")
