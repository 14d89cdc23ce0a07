"""Damaged files, uploads of other bytes than announced, links: the hub never sends or stores wrong bytes."""

import asyncio
import contextlib
import errno
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import lz4.frame
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eca_hub.__main__ import main
from eca_hub.localhub import uploads, xorbs
from eca_hub.localhub.blobs import Blobs, BlobWriter
from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.xet_format import MAX_CHUNKS, read_chunks, read_shard
from tests.localhub.hub_process import opened_hub
from tests.localhub.push_client import REPO, push
from tests.localhub.xet_client import CHUNK_BYTES, XORB, pack_chunk, pack_shard, pack_xorb, push_by_xet, xet_session

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def blob_path(root: Path, sha256: str = SHA256) -> Path:
    return root / "blobs" / sha256[:2] / sha256


def fail_to_read(*args: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class UnreadableFile(io.BytesIO):
    """A file on a disk with bad sectors."""

    read = fail_to_read


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_never_served_and_a_second_push_repairs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"/{REPO}/resolve/main/model.safetensors"
    with opened_hub(tmp_path) as client:
        push(client, {}, {"model.safetensors": CONTENT})
        assert client.get(url).content == CONTENT
        flip_a_bit(blob_path(tmp_path))
        for headers in ({}, {"Range": "bytes=0-9"}, {}):
            response = client.get(url, headers=headers)
            assert (response.status_code, response.headers["x-error-code"]) == (500, "blob_corrupt")
            assert SHA256 in response.json()["error"]
        requested = {"files": [{"path": "model.safetensors", "size": len(CONTENT), "sample": ""}]}
        assert "oid" not in client.post(f"/api/models/{REPO}/preupload/main", json=requested).json()["files"][0]
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 1
    assert f"blob {SHA256} of model.safetensors is damaged" in capsys.readouterr().out
    with opened_hub(tmp_path) as client:
        assert client.get(url).status_code == 500
        push(client, {}, {"model.safetensors": CONTENT})
        assert client.get(url).content == CONTENT
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize("pushing", [push, push_by_xet])
def test_damage_that_no_reader_has_met_is_repaired_by_the_next_push(
    tmp_path: Path, pushing: Callable[..., str]
) -> None:
    small = b"# a card"
    with opened_hub(tmp_path) as client:
        pushing(client, {"README.md": small}, {"model.safetensors": CONTENT})
        flip_a_bit(blob_path(tmp_path))
        flip_a_bit(blob_path(tmp_path, hashlib.sha256(small).hexdigest()))
        requested = {"files": [{"path": "model.safetensors", "size": len(CONTENT), "sample": ""}]}
        assert "oid" not in client.post(f"/api/models/{REPO}/preupload/main", json=requested).json()["files"][0]
        line = {"key": "lfsFile", "value": {"path": "m.bin", "algo": "sha256", "oid": SHA256, "size": len(CONTENT)}}
        ndjson = json.dumps({"key": "header", "value": {"summary": "x"}}) + "\n" + json.dumps(line)
        assert client.post(f"/api/models/{REPO}/commit/main", content=ndjson).status_code == 400
    with opened_hub(tmp_path) as client:
        pushing(client, {"README.md": small}, {"model.safetensors": CONTENT})
        assert client.get(f"/{REPO}/resolve/main/model.safetensors").content == CONTENT
        assert client.get(f"/{REPO}/resolve/main/README.md").content == small


def test_a_file_that_the_disk_cannot_read_is_damaged_and_may_be_pushed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: tuple[dict[str, bytes], dict[str, bytes]] = ({"README.md": b"# a card"}, {"model.safetensors": CONTENT})
    with opened_hub(tmp_path) as client:
        push(client, *files)

    requested = {"files": [{"path": "model.safetensors", "size": len(CONTENT), "sample": ""}]}
    with opened_hub(tmp_path) as client:
        with monkeypatch.context() as disk:
            disk.setattr(hashlib, "file_digest", fail_to_read)
            assert client.get(f"/{REPO}/resolve/main/README.md").headers["x-error-code"] == "blob_corrupt"
            assert client.get(f"/api/models/{REPO}").status_code == 200
            assert "oid" not in client.post(f"/api/models/{REPO}/preupload/main", json=requested).json()["files"][0]
            push(client, *files)
        assert client.get(f"/{REPO}/resolve/main/model.safetensors").content == CONTENT


def test_a_file_that_the_disk_stops_reading_is_verified_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = Blobs(tmp_path / "blobs", tmp_path / "tmp")
    sha256 = blobs.put(CONTENT)
    monkeypatch.setattr(hashlib, "file_digest", fail_to_read)
    assert blobs.size_bytes(sha256) == len(CONTENT)
    with monkeypatch.context() as disk:
        disk.setattr(blobs, "open_verified", lambda sha256: UnreadableFile())
        with pytest.raises(HubHTTPError) as caught:
            blobs.read(sha256, 9)
    assert caught.value.code == "blob_corrupt"
    assert blobs.size_bytes(sha256) is None


def test_an_upload_that_breaks_waits_for_the_disk_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    close = BlobWriter.close

    def close_and_note(writer: BlobWriter) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            places.append("event loop")
        places.append("thread")
        close(writer)

    monkeypatch.setattr(BlobWriter, "close", close_and_note)
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": SHA256, "size": len(CONTENT)}]}
        places.clear()
        batch = client.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).raise_for_status().json()
        upload = batch["objects"][0]["actions"]["upload"]["href"]
        assert client.put(upload, content=CONTENT[1:]).status_code == 422
    assert places == ["thread"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_metadata_of_a_file_that_was_repaired_are_read_again(tmp_path: Path) -> None:
    card = b"---\nlicense: mit\n---\n"
    header = json.dumps({"w": {"dtype": "F32", "shape": [200_000], "data_offsets": [0, 800_000]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(800_000)
    files: tuple[dict[str, bytes], dict[str, bytes]] = ({"README.md": card}, {"model.safetensors": weights})
    with opened_hub(tmp_path) as client:
        push(client, *files)
        blob_path(tmp_path, hashlib.sha256(card).hexdigest()).write_bytes(bytes(len(card)))
        blob_path(tmp_path, hashlib.sha256(weights).hexdigest()).write_bytes(bytes(len(weights)))
        info = client.get(f"/api/models/{REPO}").json()
        assert (info["cardData"], info["safetensors"]) == ({}, None)
        push(client, *files)
        info = client.get(f"/api/models/{REPO}").json()
        assert info["cardData"] == {"license": "mit"}
        assert info["safetensors"]["total"] == 200_000


def test_a_damaged_gitattributes_can_be_pushed_again(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {".gitattributes": b"*.bin filter=lfs\n"}, {})
        flip_a_bit(blob_path(tmp_path, hashlib.sha256(b"*.bin filter=lfs\n").hexdigest()))
        requested = {"files": [{"path": "a.safetensors", "size": 9, "sample": "AAEC"}]}
        response = client.post(f"/api/models/{REPO}/preupload/main", json=requested)
        assert response.json()["files"][0]["uploadMode"] == "lfs"
        push(client, {".gitattributes": b"*.bin filter=lfs\n"}, {})
        assert client.get(f"/{REPO}/resolve/main/.gitattributes").content == b"*.bin filter=lfs\n"


def test_a_missing_blob_and_a_damaged_commit_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened_hub(tmp_path) as client:
        commit = push(client, {}, {"model.safetensors": CONTENT})
        blob_path(tmp_path).unlink()
        assert client.get(f"/{REPO}/resolve/main/model.safetensors").status_code == 500
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 1
    assert "is missing" in capsys.readouterr().out
    flip_a_bit(next(tmp_path.glob(f"repos/*/commits/{commit}.json")))
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 1
    assert f"leads to commit {commit}, which cannot be read" in capsys.readouterr().out


def test_gc_keeps_what_is_needed_and_removes_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = os.urandom(1000)
    with opened_hub(tmp_path) as client:
        push_by_xet(client, {"config.json": b"{}"}, {"model.safetensors": CONTENT})
        push(client, {}, {"model.safetensors": other}, repo="acme/gone")
        client.request("DELETE", "/api/repos/delete", json={"name": "gone", "organization": "acme"}).raise_for_status()
        old_cas, _ = xet_session(client)
    assert main(["localhub", "gc", "--root", str(tmp_path), "--dry-run"]) == 0
    assert blob_path(tmp_path, hashlib.sha256(other).hexdigest()).exists()
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 0
    assert not blob_path(tmp_path, hashlib.sha256(other).hexdigest()).exists()
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("removed 0 files, 0 bytes\n")
    with opened_hub(tmp_path) as client:
        assert client.get(f"/{REPO}/resolve/main/model.safetensors").content == CONTENT
        # Clients that record what they sent must see another store, or they would not send it again.
        assert xet_session(client)[0] != old_cas
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 0


def test_gc_waits_for_the_hub_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})
        assert main(["localhub", "gc", "--root", str(tmp_path)]) == 2
        assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 0
    assert "another local hub is using" in capsys.readouterr().err


def test_an_upload_of_other_bytes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": SHA256, "size": len(CONTENT)}]}
        href = client.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]["upload"][
            "href"
        ]
        for wrong in (CONTENT[:-1], CONTENT[:-1] + b"x", CONTENT + b"x"):
            assert client.put(href, content=wrong).status_code in (413, 422)
        assert client.put(href.replace("size=300000", "size=300001"), content=CONTENT).status_code == 403
        assert client.put(href.replace(SHA256, "0" * 64), content=CONTENT).status_code == 403
        assert not blob_path(tmp_path).exists()
        assert not list((tmp_path / "tmp").iterdir())
        line = {"key": "lfsFile", "value": {"path": "m.bin", "algo": "sha256", "oid": SHA256, "size": len(CONTENT)}}
        ndjson = json.dumps({"key": "header", "value": {"summary": "x"}}) + "\n" + json.dumps(line)
        assert client.post(f"/api/models/{REPO}/commit/main", content=ndjson).status_code == 400
        assert client.put(href, content=CONTENT).status_code == 200


@pytest.mark.parametrize(
    "schemes", [*(pytest.param((scheme,), marks=pytest.mark.slow) for scheme in (0, 1, 2)), (0, 1, 2)]
)
def test_chunks_of_every_packing_make_the_file(tmp_path: Path, schemes: tuple[int, ...]) -> None:
    content = CONTENT + bytes(100_001)
    sha256 = hashlib.sha256(content).hexdigest()
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        cas, headers = xet_session(client)
        client.post(f"{cas}/v1/xorbs/default/{XORB}", content=pack_xorb(content, schemes), headers=headers)
        terms = [(XORB, 2 * CHUNK_BYTES, 0, 2), (XORB, len(content) - 2 * CHUNK_BYTES, 2, 7)]
        client.post(f"{cas}/v1/shards", content=pack_shard([(sha256, terms)]), headers=headers).raise_for_status()
        assert blob_path(tmp_path, sha256).read_bytes() == content


def test_the_disk_holds_what_xet_sent_once_and_later_files_may_still_refer_to_it(tmp_path: Path) -> None:
    size = len(CONTENT)
    joined = CONTENT[2 * CHUNK_BYTES : 4 * CHUNK_BYTES] + CONTENT[:CHUNK_BYTES]
    wanted = hashlib.sha256(joined).hexdigest()
    later = pack_shard([(wanted, [(XORB, 2 * CHUNK_BYTES, 2, 4), (XORB, CHUNK_BYTES, 0, 1)])])
    with opened_hub(tmp_path) as client:
        push_by_xet(client, {}, {"model.safetensors": CONTENT})
        stored = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert stored < size + 20_000
        cas, headers = xet_session(client)
        client.post(f"{cas}/v1/shards", content=later, headers=headers).raise_for_status()
        assert blob_path(tmp_path, wanted).read_bytes() == joined
        # Damage in the blob that the note leads to must not spread.
        blob_path(tmp_path, wanted).unlink()
        flip_a_bit(blob_path(tmp_path))
        content = bytearray(blob_path(tmp_path).read_bytes())
        content[3 * CHUNK_BYTES] ^= 1
        blob_path(tmp_path).write_bytes(content)
        assert client.post(f"{cas}/v1/shards", content=later, headers=headers).status_code in (400, 422)
        assert xet_session(client)[0] != cas
        assert not blob_path(tmp_path, wanted).exists()


def test_knowing_a_hash_is_not_enough_to_use_its_file(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {}, {"model.safetensors": CONTENT})
        cas, headers = xet_session(client)
        junk = bytes(len(CONTENT))
        client.post(f"{cas}/v1/xorbs/default/{XORB}", content=pack_xorb(junk), headers=headers).raise_for_status()
        shard = pack_shard([(SHA256, [(XORB, len(CONTENT), 0, 5)])])
        assert client.post(f"{cas}/v1/shards", content=shard, headers=headers).status_code == 400


def test_a_shard_that_does_not_add_up_is_refused_and_the_next_session_has_another_address(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        cas, headers = xet_session(client)
        client.post(f"{cas}/v1/xorbs/default/{XORB}", content=pack_xorb(CONTENT), headers=headers).raise_for_status()
        size = len(CONTENT)
        for sha256, terms in (
            ("0" * 64, [(XORB, size, 0, 5)]),
            (SHA256, [(XORB, size, 0, 6)]),
            (SHA256, [(XORB, size - 1, 0, 5)]),
            (SHA256, [(XORB, size, 5, 0)]),
            (SHA256, [("f" * 64, size, 0, 5)]),
        ):
            response = client.post(f"{cas}/v1/shards", content=pack_shard([(sha256, terms)]), headers=headers)
            assert response.status_code in (400, 422)
        assert not blob_path(tmp_path).exists()
        assert xet_session(client)[0] != cas
        good = pack_shard([(SHA256, [(XORB, size, 0, 5)])])
        client.post(f"{cas}/v1/shards", content=good, headers=headers).raise_for_status()
        assert client.post(f"{cas}/v1/shards", content=good, headers={"Authorization": "Bearer x"}).status_code == 401


def test_a_chunk_cannot_unpack_to_more_than_its_header_states(tmp_path: Path) -> None:
    bomb = lz4.frame.compress(bytes(30 << 20))
    header = bytes([0]) + len(bomb).to_bytes(3, "little") + bytes([1]) + (1000).to_bytes(3, "little")
    content = bytes(1000)
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        cas, headers = xet_session(client)
        client.post(f"{cas}/v1/xorbs/default/{XORB}", content=header + bomb, headers=headers).raise_for_status()
        shard = pack_shard([(hashlib.sha256(content).hexdigest(), [(XORB, 1000, 0, 1)])])
        response = client.post(f"{cas}/v1/shards", content=shard, headers=headers)
        assert response.status_code == 400


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400), at=st.integers(0, 400), is_cut=st.booleans())
def test_parsing_any_bytes_as_xorbs_or_shards_fails_only_with_a_hub_error(
    noise: bytes, at: int, is_cut: bool, tmp_path: Path
) -> None:
    xorb = pack_chunk(b"a" * 100, 0) + pack_chunk(b"b" * 100, 1)
    shard = pack_shard([("0" * 64, [(XORB, 100, 0, 1), (XORB, 7, 1, 2)])])
    file = tmp_path / "xorb"
    for whole in (xorb, shard):
        broken = whole[:at] + noise + (b"" if is_cut else whole[at + len(noise) :])
        file.write_bytes(broken)
        with file.open("rb") as stream:
            for action in (lambda opened=stream: read_chunks(opened), lambda data=broken: list(read_shard(data))):
                with contextlib.suppress(HubHTTPError):
                    action()


def test_a_shard_cannot_claim_more_terms_than_fit(tmp_path: Path) -> None:
    shard = bytes(48) + bytes(32) + struct.pack("<IIQ", 1 << 30, 0xFFFFFFFF, 0)
    with pytest.raises(HubHTTPError):
        list(read_shard(shard))


def test_a_link_in_the_store_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    root = tmp_path / "hub"
    with opened_hub(root) as client:
        push(client, {}, {"model.safetensors": CONTENT})
        blob_path(root).unlink()
        blob_path(root).symlink_to(secret)
        assert client.get(f"/{REPO}/resolve/main/model.safetensors").status_code == 500


def test_upload_links_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        body = {"operation": "upload", "objects": [{"oid": SHA256, "size": len(CONTENT)}]}
        href = client.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]["upload"][
            "href"
        ]
        until = int(parse_qs(urlsplit(href).query)["until"][0])
        monkeypatch.setattr("eca_hub.localhub.auth.time.time", lambda: until + 1)
        assert client.put(href, content=CONTENT).status_code == 403


@pytest.mark.parametrize(
    "xorb",
    [
        bytes([0, 0, 0, 0, 1, 1, 0, 0]),
        pack_chunk(b"a", 0) * (MAX_CHUNKS + 1),
    ],
    ids=["an empty chunk", "too many chunks"],
)
def test_a_xorb_of_more_chunks_than_the_client_makes_is_refused(xorb: bytes) -> None:
    with pytest.raises(HubHTTPError) as caught:
        read_chunks(io.BytesIO(xorb))
    assert caught.value.status == 400


@pytest.mark.parametrize(("limit", "status"), [("file", 413), ("disk", 507)])
def test_a_file_of_a_shard_is_refused_by_its_size_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, status: int
) -> None:
    if limit == "file":
        monkeypatch.setattr(uploads, "MAX_LFS_OBJECT_BYTES", len(CONTENT) - 1)
    else:
        usage = SimpleNamespace(free=len(CONTENT) - 1)
        monkeypatch.setattr(xorbs, "shutil", SimpleNamespace(disk_usage=lambda path: usage))
    with opened_hub(tmp_path) as client:
        push(client, {}, {})
        cas, _ = xet_session(client)
        with pytest.raises(httpx2.HTTPStatusError) as caught:
            push_by_xet(client, {}, {"model.safetensors": CONTENT})
        assert caught.value.response.status_code == status
        # The client need not send its chunks again.
        assert xet_session(client)[0] == cas
    assert not blob_path(tmp_path).exists()


def test_a_file_that_the_hub_has_is_accepted_again_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_hub(tmp_path) as client:
        commit = push_by_xet(client, {}, {"model.safetensors": CONTENT})
        monkeypatch.setattr(xorbs, "shutil", SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=0)))
        assert push_by_xet(client, {"README.md": b"# a card"}, {"model.safetensors": CONTENT}) != commit
