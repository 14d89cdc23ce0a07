"""A file against the hash that a hub announces: read once, and hashed as it was read."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from eca_hub.hub.hashes import PIECE_BYTES, file_has_hash, hash_like_hub, new_hasher, read_and_hash


@pytest.mark.parametrize("num_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
@pytest.mark.parametrize("length", [40, 64])
def test_a_file_of_any_size_is_read_and_hashed_completely(num_bytes: int, length: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(num_bytes))
    digest = new_hasher("x" * length, num_bytes)
    assert bytes(read_and_hash(path, digest)) == path.read_bytes()
    assert digest.hexdigest() == hash_like_hub(path.read_bytes(), "x" * length)
    assert file_has_hash(path, digest.hexdigest())
    assert not file_has_hash(path, "0" * length)


def test_the_two_kinds_are_sha256_and_git_blob_id(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"some text\n")
    command = ["git", "hash-object", str(path)]
    git = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert file_has_hash(path, git)
    assert file_has_hash(path, hashlib.sha256(b"some text\n").hexdigest())
    assert not file_has_hash(path, "")


def test_what_is_hashed_is_what_was_read_also_when_the_file_shrinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    stat = path.stat()
    path.write_bytes(b"01234")
    monkeypatch.setattr(Path, "stat", lambda self, **_: stat)
    digest = hashlib.sha256()
    assert bytes(read_and_hash(path, digest)) == b"01234"
    assert digest.hexdigest() == hashlib.sha256(b"01234").hexdigest()
