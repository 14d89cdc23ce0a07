"""Headers and errors of every response; names, paths, ranges and bodies that are invalid."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from eca_hub.localhub import Store, Users, create_app
from eca_hub.localhub.blobs import Blobs
from eca_hub.localhub.commits import Commit, CommitOperations, StoredFile
from eca_hub.localhub.repo import Repo
from tests.localhub.conftest import READER
from tests.localhub.hub_process import Hub, opened_hub
from tests.localhub.push_client import REPO, push


def commit(client: httpx2.Client, repo_id: str, path: str, content: bytes = b"x") -> httpx2.Response:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "one"}}, {"key": "file", "value": value}]
    return client.post(f"/api/models/{repo_id}/commit/main", content="\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/missing/nothing",
        "/api/models/nothing",
        "/missing/nothing/resolve/main/f",
        "/api/nothing",
        "/nothing",
        "/missing/nothing",
        "/%ff/%ff",
        "/api/models/%2e%2e/%2e%2e",
        "/api/models/a/b/tree/main/%00",
        "/" + "x" * 8000,
    ],
)
def test_every_refusal_has_code_message_and_request_id(http: httpx2.Client, path: str) -> None:
    response = http.get(path)
    assert 400 <= response.status_code < 500
    assert response.headers["x-error-code"]
    assert response.headers["x-request-id"]
    assert response.json() == {"error": response.json()["error"]}


def test_successful_responses_have_a_request_id_too(http: httpx2.Client) -> None:
    ids = {http.get("/api/models").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_clients_own_request_id_is_kept_if_it_is_valid_in_a_header(http: httpx2.Client) -> None:
    def request_id_of(**headers: str) -> str:
        return http.get("/api/models", headers=headers).headers["x-request-id"]

    assert request_id_of(**{"X-Request-Id": "custom-id"}) == "custom-id"
    assert request_id_of(**{"X-Amzn-Trace-Id": "Root=1-67a:b"}) == "Root=1-67a:b"
    for bad in ("", "a b", "x" * 129, "<script>"):
        assert request_id_of(**{"X-Request-Id": bad}) != bad


def test_a_wrong_method_is_405(http: httpx2.Client) -> None:
    response = http.put("/api/whoami-v2")
    assert (response.status_code, response.headers["x-error-code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../b",
        "/abs",
        "a\\..\\b",
        "C:\\x",
        "nul\0",
        ".git/config",
        "a/.git/x",
        "a//b",
        "",
        ".",
        "x" * 300,
        "\ud800",
    ],
)
def test_a_path_that_could_leave_its_folder_is_refused(http: httpx2.Client, repo_id: str, path: str) -> None:
    response = commit(http, repo_id, path)
    assert response.status_code in (400, 422)
    requested = {"files": [{"path": path, "sample": "", "size": 1}]}
    response = http.post(f"/api/models/{repo_id}/preupload/main", content=json.dumps(requested))
    assert response.status_code in (400, 422)


def test_paths_that_differ_only_in_case_are_refused(http: httpx2.Client, repo_id: str) -> None:
    assert commit(http, repo_id, "Model.bin").status_code == 200
    assert commit(http, repo_id, "model.bin").status_code == 422
    assert commit(http, repo_id, "Model.bin/file").status_code == 422
    assert commit(http, repo_id, "caf\u00e9").status_code == 200
    assert commit(http, repo_id, "cafe\u0301").json()["error"].endswith("differ only in Unicode form.")


@pytest.mark.parametrize("name", ["..", "a/b", "-a", "a.", "a--b", "x" * 97, "a b", "a\0", "ä", "a.git", "", None, 3])
def test_a_bad_repository_name_is_refused(http: httpx2.Client, name: object) -> None:
    response = http.post("/api/repos/create", json={"name": name, "organization": "acme"})
    assert response.status_code in (400, 422)


@pytest.mark.parametrize("owner", ["api", "datasets", "Spaces", ".."])
def test_a_reserved_owner_is_refused(tmp_path: Path, owner: str) -> None:
    with opened_hub(tmp_path) as client:
        assert client.post("/api/repos/create", json={"name": "x", "organization": owner}).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"3",
        b"NaN",
        b'{"name": NaN}',
        b"\xff\xfe",
        b"[" * 100000,
        b'{"name": "\\ud800"}',
        b'{"name": 1e400}',
        b'{"name": "x", "type": []}',
        b'{"name": ["x"]}',
    ],
)
def test_no_body_makes_the_hub_fail(http: httpx2.Client, repo_id: str, body: bytes) -> None:
    calls = ["/api/repos/create", "/api/repos/move", "/api/validate-yaml", f"/{repo_id}.git/info/lfs/objects/batch"]
    calls += [f"/api/models/{repo_id}/{name}" for name in ("preupload/main", "commit/main", "settings", "tag/main")]
    for path in calls:
        response = http.post(path, content=body)
        assert response.status_code < 500, path
        assert response.headers["content-type"] == "application/json", path


def test_a_body_beyond_its_limit_is_refused_before_it_is_read(hub: Hub) -> None:
    address = urlsplit(hub.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0))) as connection:
        head = f"POST /api/validate-yaml HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 99999999\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("host", ["a/b", "a?c#", "a b", "<x>", "a:b:c", "a@b"])
def test_an_invalid_host_header_is_refused(hub: Hub, host: str) -> None:
    with opened_hub(hub.root.parent / f"hosts-{abs(hash(host))}") as client:
        response = client.get("/", headers={"Host": host})
    assert (response.status_code, response.headers["x-error-code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer unknown", "Basic YTpi", "Bearer token-of-alic", "Bearer t\xf6ken", "bearer x"],
)
def test_an_unknown_token_is_401_even_where_none_is_needed(hub: Hub, header: str) -> None:
    response = httpx2.get(f"{hub.url}/api/models", headers=[(b"Authorization", header.encode("latin-1"))], verify=False)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "unknown" not in response.text


def test_writing_without_a_token_is_401_and_with_a_readers_token_403(hub: Hub, repo_id: str) -> None:
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {READER}"}, 403)):
        with httpx2.Client(base_url=hub.url, headers=headers, verify=False) as client:
            assert commit(client, repo_id, "a.txt").status_code == status
            assert client.post("/api/repos/create", json={"name": "x", "organization": "acme"}).status_code == status
            assert client.get(f"/api/models/{repo_id}/xet-write-token/main").status_code == status
            assert client.get(f"/api/models/{repo_id}").status_code == 200


@pytest.mark.parametrize(
    ("requested", "status", "served"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-999", 206, b"56789"),
        ("bytes=-999", 206, b"0123456789"),
        ("bytes=10-", 416, b""),
        ("bytes=5-3", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=-", 416, b""),
        ("bytes=0-1,3-4", 416, b""),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(5000)), 416, b""),
        ("bytes=a-b", 416, b""),
        ("items=0-1", 200, b"0123456789"),
    ],
)
def test_one_range_is_served_and_others_are_refused(
    http: httpx2.Client, repo_id: str, requested: str, status: int, served: bytes
) -> None:
    commit(http, repo_id, "digits.txt", b"0123456789").raise_for_status()
    url = f"/{repo_id}/resolve/main/digits.txt"
    response = http.get(url, headers={"Range": requested})
    assert response.status_code == status
    if status < 400:
        assert response.content == served
    else:
        assert response.headers["content-range"] == "bytes */10"
    etag = http.head(url).headers["etag"]
    assert http.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert http.get(url, headers={"Range": "bytes=0-3", "If-Range": '"old"'}).content == b"0123456789"


def test_a_branch_with_a_slash_is_one_name_and_not_a_folder(http: httpx2.Client, repo_id: str) -> None:
    assert http.post(f"/api/models/{repo_id}/branch/feature%2Fx", json={}).status_code == 200
    assert http.get(f"/{repo_id}/resolve/feature%2Fx/.gitattributes").status_code == 200
    assert http.get(f"/api/models/{repo_id}/tree/feature%2Fx").json()[0]["path"] == ".gitattributes"
    assert http.get(f"/{repo_id}/resolve/feature/x/.gitattributes").headers["x-error-code"] == "RevisionNotFound"


def test_a_long_tree_comes_in_pages(http: httpx2.Client, hub: Hub, repo_id: str) -> None:
    files = {f"folder/{number:04}.txt": b"x" for number in range(120)}
    push(http, files, {}, repo=repo_id)
    first = http.get(f"/api/models/{repo_id}/tree/main/folder?expand=true")
    assert len(first.json()) == 50
    assert first.headers["link"].startswith(f"<{hub.url}/api/models/{repo_id}/tree/main/folder?expand=true&cursor=50>")
    names = [entry.path for entry in HfApi(endpoint=hub.url).list_repo_tree(repo_id, "folder", expand=True)]
    assert names == sorted(files)


def test_the_pages_of_an_expanded_tree_read_the_history_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str | None] = []
    history = Repo.history

    def counted(repo: Repo, commit_id: str | None) -> Iterator[tuple[str, Commit]]:
        walks.append(commit_id)
        return history(repo, commit_id)

    with opened_hub(tmp_path) as client:
        push(client, {f"{number:03}.txt": b"x" for number in range(150)}, {})
        last = push(client, {"003.txt": b"y"}, {})
        monkeypatch.setattr(Repo, "history", counted)
        entries = client.get(f"/api/models/{REPO}/tree/main?expand=true&limit=10000").json()
        assert len(entries) == 100, "a longer page takes too long"
        rest = client.get(f"/api/models/{REPO}/tree/main?expand=true&limit=10000&cursor=100").json()
        assert [entry["path"] for entry in rest] == [".gitattributes", *(f"{number:03}.txt" for number in range(150))][
            100:
        ]
        assert walks == [last]
        assert [entry["path"] for entry in entries if entry["lastCommit"]["id"] == last] == ["003.txt"]


def test_mounted_under_a_path_every_url_has_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    app = Starlette(routes=[Mount("/hub", create_app(store, Users.single("t")))])
    with TestClient(app, "http://example:8000/hub/", headers={"Authorization": "Bearer t"}) as client:
        created = client.post("api/repos/create", json={"name": "digits", "organization": "acme"}).json()
        assert created["url"] == "http://example:8000/hub/acme/digits"
        body = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}]}
        actions = client.post("acme/digits.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]
        assert actions["upload"]["href"].startswith("http://example:8000/hub/-/lfs/")
        assert actions["verify"]["href"] == "http://example:8000/hub/acme/digits.git/info/lfs/verify"
        cas = client.get("api/models/acme/digits/xet-write-token/main").json()["casUrl"]
        assert cas.startswith("http://example:8000/hub/-/xet/")
        assert client.get("acme/digits/resolve/refs%2Fheads%2Fmain/.gitattributes").status_code == 200
        assert 'href="http://example:8000/hub/acme/digits"' in client.get("").text
    store.close()


@pytest.mark.slow  # the real timeout; test_timeouts.py has all of them shortened
def test_incomplete_headers_are_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    address = urlsplit(hub.url)
    begin = time.monotonic()
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20) as connection:
        connection.sendall(b"GET / HTT")
        assert connection.recv(1000) == b""
    assert time.monotonic() - begin < 12


def test_a_route_that_this_hub_does_not_have_is_not_taken_for_a_missing_repository(
    http: httpx2.Client, repo_id: str
) -> None:
    for method, path in (("GET", "lfs-files"), ("POST", "duplicate"), ("GET", "likers"), ("GET", "scan/main")):
        response = http.request(method, f"/api/models/{repo_id}/{path}")
        assert (response.status_code, response.headers["x-error-code"]) == (501, "not_implemented")
        assert f"This hub has no route /{path.partition('/')[0]} of a repository" in response.json()["error"]
    for path in ("tree", "revision", "commit/main/again", "refs/main", "branch"):
        response = http.get(f"/api/models/{repo_id}/{path}")
        assert (response.status_code, response.headers["x-error-code"]) == (404, "not_found")
        assert f"no such route below /{path.partition('/')[0]}" in response.json()["error"]
    for path in ("nobody", "nobody/nothing", "nobody/tree/main", "nobody/revision/main"):
        response = http.get(f"/api/models/{path}")
        assert (response.status_code, response.headers["x-error-code"]) == (404, "RepoNotFound")


def test_pull_requests_discussions_and_squashing_are_refused_with_a_sentence(http: httpx2.Client, repo_id: str) -> None:
    lines = json.dumps({"key": "header", "value": {"summary": "one"}})
    response = http.post(f"/api/models/{repo_id}/commit/main?create_pr=1", content=lines)
    assert (response.status_code, response.headers["x-error-code"]) == (501, "not_implemented")
    assert "commit to a branch" in response.json()["error"]
    for method, path in (("GET", "discussions"), ("POST", "discussions/1/merge"), ("POST", "super-squash/main")):
        response = http.request(method, f"/api/models/{repo_id}/{path}")
        assert (response.status_code, response.headers["x-error-code"]) == (501, "not_implemented")
        assert path.partition("/")[0] in response.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"discussionsDisabled": True},
        {"gated": True},
        {"gated": "yes"},
        {"gated": 0},
        {"private": "false"},
        {"visibility": "hidden"},
        {"visibility": "public", "private": True},
    ],
)
def test_other_settings_than_private_gated_and_visibility_are_refused(
    http: httpx2.Client, repo_id: str, body: dict[str, object]
) -> None:
    before = http.get(f"/api/models/{repo_id}").json()
    assert http.put(f"/api/models/{repo_id}/settings", json=body).status_code == 400
    assert http.get(f"/api/models/{repo_id}").json() == before


@pytest.mark.parametrize(
    "visibility",
    [
        {"private": "true"},
        {"private": 1},
        {"visibility": "Private"},
        {"visibility": ["private"]},
        {"visibility": "public", "private": True},
    ],
)
def test_a_repository_whose_visibility_is_unclear_is_not_created(
    http: httpx2.Client, visibility: dict[str, object]
) -> None:
    response = http.post("/api/repos/create", json={"name": "unclear", "organization": "acme", **visibility})
    assert response.status_code == 400
    assert http.get("/api/models/acme/unclear").status_code == 404


@pytest.mark.parametrize(
    "text", ["%00", "a%0Bb", "a%0C", "a%09", "a%20", "%20", "a%7F", "%C2%85", "%E2%80%A8", "é" * 2000]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/models/{repo}/revision/{text}"),
        ("HEAD", "/{repo}/resolve/{text}/file"),
        ("HEAD", "/{repo}/resolve/main/{text}"),
        ("GET", "/api/models/{repo}/tree/main/{text}"),
        ("POST", "/api/models/{repo}/tag/{text}"),
        ("DELETE", "/api/models/{repo}/branch/{text}"),
        ("POST", "/api/models/{repo}/commit/{text}"),
    ],
)
def test_what_a_header_cannot_hold_is_refused_with_a_response(
    http: httpx2.Client, repo_id: str, method: str, path: str, text: str
) -> None:
    response = http.request(method, path.format(repo=repo_id, text=text), json={"tag": "v1"})
    assert 400 <= response.status_code < 500
    assert response.headers["x-error-message"]


def test_a_file_is_deleted_as_a_file_and_a_folder_as_a_folder(http: httpx2.Client, repo_id: str) -> None:
    assert commit(http, repo_id, "folder/file").status_code == 200
    for key, path in (("deletedFile", "folder"), ("deletedFolder", "folder/file")):
        lines = [{"key": "header", "value": {"summary": "one"}}, {"key": key, "value": {"path": path}}]
        response = http.post(f"/api/models/{repo_id}/commit/main", content="\n".join(map(json.dumps, lines)))
        assert (response.status_code, response.headers["x-error-code"]) == (404, "EntryNotFound")
    assert http.get(f"/{repo_id}/resolve/main/folder/file").status_code == 200


def test_many_files_are_deleted_without_reading_the_list_of_files_for_each(tmp_path: Path) -> None:
    class CountedFiles(dict[str, StoredFile]):
        num_reads = 0

        def __iter__(self) -> Iterator[str]:
            self.num_reads += 1
            return super().__iter__()

        def items(self) -> Any:
            self.num_reads += 1
            return super().items()

    operations = CommitOperations(Blobs(tmp_path, tmp_path), lambda _: True)
    before = CountedFiles({f"{number // 100}/{number}.txt": StoredFile(1, "0" * 64) for number in range(1000)})
    for number in range(500):
        path = {"path": f"{number // 100}/{number}.txt"}
        operations.read_line(json.dumps({"key": "deletedFile", "value": path}).encode())
    for folder in range(5, 9):
        operations.read_line(json.dumps({"key": "deletedFolder", "value": {"path": f"{folder}/"}}).encode())
    assert sorted(operations.apply_to(before, None)) == [f"9/{number}.txt" for number in range(900, 1000)]
    assert before.num_reads < 5


def test_too_many_patterns_for_the_files_of_one_preupload_are_refused(http: httpx2.Client, repo_id: str) -> None:
    files = [{"path": f"{'a/' * 100}{number}", "size": 1, "sample": ""} for number in range(1000)]
    body = {"files": files, "gitIgnore": "\n".join(f"*{number}" for number in range(2000))}
    response = http.post(f"/api/models/{repo_id}/preupload/main", json=body)
    assert response.status_code == 422
    assert "fewer files" in response.json()["error"]
    body = {"files": files[:5], "gitIgnore": "*3\n"}
    entries = http.post(f"/api/models/{repo_id}/preupload/main", json=body).json()["files"]
    assert [entry["shouldIgnore"] for entry in entries] == [False, False, False, True, False]
