"""Model cards and HTML pages: nothing in a repository runs in a browser, and no card makes the hub fail."""

import struct
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eca_hub.localhub import reads
from eca_hub.localhub.card_metadata import read_metadata, validate_card
from eca_hub.localhub.html import render_card
from eca_hub.localhub.serializers import serialize_repo
from eca_hub.localhub.validation import RepoId
from tests.localhub.hub_process import Hub, opened_hub
from tests.localhub.push_client import REPO, push


def test_the_page_of_a_repository_escapes_html_and_scripts(tmp_path: Path) -> None:
    card = (
        "---\nlicense: mit\ntags: ['<b>bold</b>']\n---\n# Title\n\n<script>alert(1)</script>\n\n"
        "[bad](javascript:alert(1)) [good](model.bin) ![image](curves.png) [out](https://example.org)\n\n"
        "| a | b |\n|---|---|\n| 1 | <img src=x onerror=alert(1)> |\n"
    )
    with opened_hub(tmp_path) as client:
        commit_id = push(client, {"README.md": card.encode(), "<i>.txt": b"x"}, {})
        page = client.get(f"/{REPO}")
        assert "<script" not in page.text
        assert "<img src=x" not in page.text
        assert "<i>" not in page.text
        assert 'href="javascript:' not in page.text
        assert "<h1>Title</h1>" in page.text
        assert f'src="http://127.0.0.1:1234/{REPO}/resolve/{commit_id}/curves.png"' in page.text
        assert "<td>1</td>" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        index = client.get("/").text
        assert f"/{REPO}" in index
        assert "<b>" not in index
        assert client.get(f"/{REPO}/commit/{commit_id}").status_code == 200
        served = client.get(f"/{REPO}/resolve/main/README.md")
        assert "sandbox" in served.headers["content-security-policy"]


def test_private_and_gated_cards_are_not_on_the_pages(hub: Hub, http: httpx2.Client, repo_id: str) -> None:
    push(http, {"README.md": b"# Hidden words"}, {}, repo=repo_id)
    http.put(f"/api/models/{repo_id}/settings", json={"gated": "manual"}).raise_for_status()
    assert "Hidden words" not in httpx2.get(f"{hub.url}/{repo_id}", verify=False).text
    http.put(f"/api/models/{repo_id}/settings", json={"private": True}).raise_for_status()
    assert httpx2.get(f"{hub.url}/{repo_id}", verify=False).status_code == 401
    assert repo_id not in httpx2.get(f"{hub.url}/", verify=False).text


@pytest.mark.parametrize(
    "card",
    [
        "---\na: &a [x, x]\nb: [*a, *a]\n---\n",
        "---\n!!python/object/apply:os.system ['true']\n---\n",
        "---\n" + "a: " + "[" * 5000 + "\n---\n",
        "---\na: .nan\nb: 1e400\nc: 0x" + "f" * 5000 + '\nd: "\\ud800"\ne: 2026-01-01\n---\n',
        "---\nno end",
        "---\n- a list\n---\n",
        "---\ntags: {a: b}\nlicense: [[x]]\npipeline_tag: 3\n---\n",
        "---\nx: !!bool maybe\n---\n",
        '---\nx: !!int ""\n---\n',
        '---\nx: !!float ""\n---\n',
        "---\nx: !!timestamp x\n---\n",
        "---\nx: " + "9:" * 200 + "5.5\n---\n",
    ],
)
def test_no_card_makes_the_hub_fail(tmp_path: Path, card: str) -> None:
    validate_card(card)
    with opened_hub(tmp_path) as client:
        push(client, {"README.md": card.encode(), "config.json": b'{"model_type": 1e400, "architectures": [[]]}'}, {})
        for path in (f"/api/models/{REPO}", "/api/models?full=true&cardData=true&config=true", "/", f"/{REPO}"):
            assert client.get(path).status_code == 200
        assert client.post("/api/validate-yaml", json={"content": card}).status_code in (200, 400)


@pytest.mark.parametrize(
    "card", ["---\nx: !!bool maybe\n---\n", '---\nx: !!int ""\n---\n', "---\nx: !!timestamp x\n---\n"]
)
def test_a_value_that_does_not_fit_its_tag_is_an_error_of_the_card(card: str) -> None:
    [error], _ = validate_card(card)
    assert "YAML" in error


@pytest.mark.parametrize("length", ["1e999", "1.5", "true", "-1", '"3"', "1" + "0" * 30])
def test_no_header_of_weights_makes_the_hub_fail(tmp_path: Path, length: str) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % length.encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(4)
    with opened_hub(tmp_path) as client:
        push(client, {}, {"model.safetensors": weights})
        for path in (f"/api/models/{REPO}", "/api/models?full=true", "/", f"/{REPO}"):
            assert client.get(path).status_code == 200
        assert client.get(f"/api/models/{REPO}").json()["safetensors"] is None


def test_a_repository_that_cannot_be_serialized_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serialize(repo_id: RepoId, *args: Any) -> dict[str, Any]:
        if repo_id.name == "odd":
            raise ZeroDivisionError
        return serialize_repo(repo_id, *args)

    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {}, repo="acme/odd")
        push(client, {"a.txt": b"a"}, {}, repo="acme/plain")
        monkeypatch.setattr(reads, "serialize_repo", serialize)
        assert [model["id"] for model in client.get("/api/models").json()] == ["acme/plain"]
        assert "acme/plain" in client.get("/").text


def test_metadata_are_read_with_any_line_ends() -> None:
    assert read_metadata("---\r\nlicense: mit\r\n---\r\n# Card") == {"license": "mit"}
    assert read_metadata("---\n---\n") == {}
    assert read_metadata("# no metadata") == {}
    assert read_metadata("\ufeff---\nlicense: mit\n---\n# Card") == {"license": "mit"}
    assert validate_card("---\nlicense: my-own\nmodel-index: x\n---\n") == ([], [])
    assert "<h1>" in render_card("# x", "http://h/")


@pytest.mark.parametrize("num_chars", [64_050, 70_000])
def test_metadata_that_are_too_long_are_an_error_and_not_called_missing(num_chars: int) -> None:
    [error], _ = validate_card(f"---\nx: {'y' * num_chars}\n---\n")
    assert "at most 64000 characters" in error
