"""Atomic writes leave the old content or the new content."""

import errno
import os
import stat
from pathlib import Path

import pytest

from eca_hub import atomic
from eca_hub.atomic import atomic_folder, sha256_of, write_atomic


@pytest.fixture
def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("verify", [False, True])
def test_a_file_is_replaced_and_no_temporary_file_remains(tmp_path: Path, verify: bool) -> None:
    path = tmp_path / "config.json"
    for content in (b"before", b"after"):
        write_atomic(path, content, verify=verify)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"before")
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match=r"No space left .*config\.json"):
        write_atomic(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_that_the_disk_changed_are_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"before")
    monkeypatch.setattr(atomic, "sha256_of", lambda path: "0" * 64)
    with pytest.raises(OSError, match="differ from the bytes written"):
        write_atomic(path, b"after", verify=True)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask_or_the_mode(tmp_path: Path, umask: int) -> None:
    write_atomic(tmp_path / "plain", b"")
    write_atomic(tmp_path / "secret", b"", mode=0o600)
    with atomic_folder(tmp_path / "folder") as draft:
        (draft / "file").write_bytes(b"")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"plain": 0o666 & ~umask, "secret": 0o600 & ~umask, "folder": 0o777 & ~umask}


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "folder") as draft:
        (draft / "file").write_bytes(b"content")
        assert not (tmp_path / "new" / "folder").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"content"


def test_a_folder_whose_block_fails_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "folder"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "kept"]


def test_the_hash_of_a_folder_covers_names_and_bytes(tmp_path: Path) -> None:
    hashes = []
    for number, (name, content) in enumerate([("a", b"1"), ("b", b"1"), ("a", b"2")]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(content)
        hashes.append(sha256_of(tmp_path / str(number)))
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_on_a_file_system_that_cannot_sync_folders_only_the_files_are_synced(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses_files = False

    def refuse(descriptor: int) -> None:
        if refuses_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "config.json", b"content")
    with atomic_folder(tmp_path / "folder") as draft:
        (draft / "file").write_bytes(b"content")
    assert (tmp_path / "config.json").read_bytes() == (tmp_path / "folder" / "file").read_bytes() == b"content"
    refuses_files = True
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomic(tmp_path / "config.json", b"other")
    with pytest.raises(OSError, match=os.strerror(number)), atomic_folder(tmp_path / "other") as draft:
        (draft / "file").write_bytes(b"content")
