"""Bytes can be committed by a user who has uploaded them or can read them: hash and size are not enough."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from eca_hub.__main__ import main
from eca_hub.localhub.auth import User, Users
from tests.localhub.hub_process import opened_hub
from tests.localhub.push_client import push
from tests.localhub.xet_client import push_by_xet

SECRET = os.urandom(50_000)
SHA256 = hashlib.sha256(SECRET).hexdigest()
USERS = Users([(User("alice"), "alice"), (User("bob"), "bob"), (User("admin", "admin"), "admin")])
POINTER = {"path": "model.safetensors", "algo": "sha256", "oid": SHA256, "size": len(SECRET)}


@pytest.fixture
def alice(tmp_path: Path) -> Iterator[TestClient]:
    with opened_hub(tmp_path, USERS, "alice") as client:
        yield client


def as_user(client: TestClient, name: str) -> TestClient:
    return TestClient(client.app, str(client.base_url), headers={"Authorization": f"Bearer {name}"})


def commit_pointer(client: TestClient, repo: str) -> httpx2.Response:
    owner, name = repo.split("/")
    client.post("/api/repos/create", json={"name": name, "organization": owner})
    lines = [{"key": "header", "value": {"summary": "one"}}, {"key": "lfsFile", "value": POINTER}]
    return client.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines)))


def is_upload_needed(client: TestClient, repo: str) -> bool:
    body = {"operation": "upload", "objects": [{"oid": SHA256, "size": len(SECRET)}]}
    return "actions" in client.post(f"/{repo}.git/info/lfs/objects/batch", json=body).json()["objects"][0]


@pytest.mark.parametrize("settings", [{"private": True}, {"gated": "auto"}, {"gated": "manual"}])
def test_a_user_cannot_take_a_hidden_file_by_its_hash(alice: TestClient, settings: dict[str, object]) -> None:
    push(alice, {}, {"model.safetensors": SECRET}, repo="alice/hidden")
    alice.put("/api/models/alice/hidden/settings", json=settings).raise_for_status()
    bob = as_user(alice, "bob")
    assert bob.get("/alice/hidden/resolve/main/model.safetensors").status_code in (403, 404)
    response = commit_pointer(bob, "bob/stolen")
    assert (response.status_code, response.headers["x-error-code"]) == (400, "lfs_object_missing")
    assert bob.get("/bob/stolen/resolve/main/model.safetensors").status_code == 404
    # The same as for bytes that the hub does not have: the response must not reveal that they exist.
    assert is_upload_needed(bob, "bob/stolen")
    verify = {"oid": SHA256, "size": len(SECRET)}
    assert bob.post("/bob/stolen.git/info/lfs/verify", json=verify).status_code == 404


def test_a_user_who_uploads_the_same_bytes_may_use_them(alice: TestClient) -> None:
    push(alice, {}, {"model.safetensors": SECRET}, repo="alice/hidden")
    alice.put("/api/models/alice/hidden/settings", json={"private": True}).raise_for_status()
    bob = as_user(alice, "bob")
    push(bob, {}, {"model.safetensors": SECRET}, repo="bob/own")
    assert bob.get("/bob/own/resolve/main/model.safetensors").content == SECRET
    assert commit_pointer(bob, "bob/another").status_code == 200


def test_an_upload_by_xet_counts_for_its_user_only(tmp_path: Path) -> None:
    users = Users([(User("acme"), "acme"), (User("bob"), "bob")])
    with opened_hub(tmp_path, users, "acme") as acme:
        push_by_xet(acme, {}, {"model.safetensors": SECRET})
        acme.put("/api/models/acme/digits/settings", json={"private": True}).raise_for_status()
        assert commit_pointer(as_user(acme, "bob"), "bob/stolen").status_code == 400
        assert commit_pointer(acme, "acme/another").status_code == 200


def test_a_file_that_the_user_can_read_needs_no_second_upload(alice: TestClient) -> None:
    push(alice, {}, {"model.safetensors": SECRET}, repo="alice/open")
    bob = as_user(alice, "bob")
    assert commit_pointer(bob, "bob/copy").status_code == 200
    assert not is_upload_needed(bob, "bob/copy")
    # In the own repository the file stays usable after the other one has been hidden.
    alice.put("/api/models/alice/open/settings", json={"private": True}).raise_for_status()
    assert commit_pointer(bob, "bob/second").status_code == 200


def test_only_files_of_visible_commits_can_be_read(alice: TestClient) -> None:
    push(alice, {}, {"model.safetensors": SECRET}, repo="alice/open")
    alice.post("/api/models/alice/open/branch/next", json={}).raise_for_status()
    alice.request("DELETE", "/api/repos/delete", json={"name": "alice/open"}).raise_for_status()
    assert commit_pointer(as_user(alice, "bob"), "bob/stolen").status_code == 400


def test_a_damaged_history_of_one_repository_fails_no_commit_to_another(alice: TestClient, tmp_path: Path) -> None:
    push(alice, {"a.txt": b"1"}, {}, repo="alice/damaged")
    push(alice, {"a.txt": b"2"}, {}, repo="alice/damaged")
    history = alice.get("/api/models/alice/damaged/commits/main").json()
    next(tmp_path.glob(f"repos/*/commits/{history[1]['id']}.json")).write_bytes(b"{}")
    push(alice, {}, {"model.safetensors": SECRET}, repo="alice/open")
    bob = as_user(alice, "bob")
    assert commit_pointer(bob, "bob/copy").status_code == 200
    alice.request("DELETE", "/api/repos/delete", json={"name": "alice/open"}).raise_for_status()
    bob.request("DELETE", "/api/repos/delete", json={"name": "bob/copy"}).raise_for_status()
    assert commit_pointer(bob, "bob/second").status_code == 400


def test_an_admin_can_read_everything(alice: TestClient) -> None:
    push(alice, {}, {"model.safetensors": SECRET}, repo="alice/hidden")
    alice.put("/api/models/alice/hidden/settings", json={"private": True}).raise_for_status()
    assert commit_pointer(as_user(alice, "admin"), "admin/copy").status_code == 200


def test_an_upload_link_of_one_user_does_not_count_for_another(alice: TestClient) -> None:
    push(alice, {}, {}, repo="alice/own")
    body = {"operation": "upload", "objects": [{"oid": SHA256, "size": len(SECRET)}]}
    batch = alice.post("/alice/own.git/info/lfs/objects/batch", json=body).json()
    href = batch["objects"][0]["actions"]["upload"]["href"]
    assert alice.put(href.replace("user=alice", "user=bob"), content=SECRET).status_code == 403
    alice.put(href, content=SECRET).raise_for_status()
    assert commit_pointer(as_user(alice, "bob"), "bob/stolen").status_code == 400
    assert commit_pointer(alice, "alice/own").status_code == 200


def test_uploads_are_recorded_across_a_restart_and_cleared_by_gc(tmp_path: Path) -> None:
    with opened_hub(tmp_path, USERS, "alice") as alice:
        push(alice, {}, {"model.safetensors": SECRET}, repo="alice/own")
        alice.request("DELETE", "/api/repos/delete", json={"name": "alice/own"}).raise_for_status()
    with opened_hub(tmp_path, USERS, "alice") as alice:
        assert commit_pointer(alice, "alice/again").status_code == 200
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 0
    assert not list((tmp_path / "uploads").iterdir())
    with opened_hub(tmp_path, USERS, "alice") as alice:
        assert commit_pointer(alice, "alice/third").status_code == 200, "alice can read it in alice/again"
