"""A large file is read and hashed behind the client that downloads it, or from the cache where that is not possible."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from eca_hub.errors import ChecksumMismatch, HubError
from eca_hub.hub import pull as pull_module
from eca_hub.hub.download_reader import MIN_BYTES
from eca_hub.hub.hashes import PIECE_BYTES, read_and_hash
from eca_hub.hub.pull import pull
from tests.hub.hostile import MODEL_ID, FaultyHub, Response, files_of

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tiny_package: Path) -> Iterator[FaultyHub]:
    """A hub whose weights are large; they are noise, because they are not loaded here."""
    noise = os.urandom(MIN_BYTES + PIECE_BYTES + 1)
    with FaultyHub(files_of(tiny_package) | {WEIGHTS: noise}).running() as running:
        yield running


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that are read from the cache."""
    sizes: list[int] = []

    def read(path: Path, digest: object) -> memoryview:
        sizes.append(path.stat().st_size)
        return read_and_hash(path, digest)  # type: ignore[arg-type]

    monkeypatch.setattr(pull_module, "read_and_hash", read)
    return sizes


def test_a_large_file_is_not_read_again_after_its_download(hub: FaultyHub, files_read: list[int]) -> None:
    weights = hub.files[WEIGHTS]
    assert pull(MODEL_ID, endpoint=hub.url).weights_bytes == weights
    assert len(weights) not in files_read
    assert pull(MODEL_ID, endpoint=hub.url).weights_bytes == weights
    assert files_read.count(len(weights)) == 1, "the second time it comes from the cache"


def test_a_download_that_breaks_and_goes_on_is_followed_to_its_end(hub: FaultyHub, files_read: list[int]) -> None:
    def cut_the_first(method: str, name: str, nth: int, response: Response) -> None:
        if method == "GET" and name == WEIGHTS and nth == 0:
            response.cut_at = len(response.body) // 2

    hub.fault = cut_the_first
    assert pull(MODEL_ID, endpoint=hub.url).weights_bytes == hub.files[WEIGHTS]
    assert len(hub.files[WEIGHTS]) not in files_read


def test_a_file_is_read_from_the_cache_if_two_downloads_run_at_once(
    hub: FaultyHub, cache: Path, files_read: list[int]
) -> None:
    def begin_another(method: str, name: str, _: int, __: Response) -> None:
        if method == "GET" and name == WEIGHTS:
            [blobs] = cache.glob("models--*/blobs")
            (blobs / "another.incomplete").write_bytes(b"")

    hub.fault = begin_another
    assert pull(MODEL_ID, endpoint=hub.url).weights_bytes == hub.files[WEIGHTS]
    assert len(hub.files[WEIGHTS]) in files_read


def test_a_download_that_fails_early_ends_although_another_one_runs(
    hub: FaultyHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_another_and_cut(method: str, name: str, _: int, response: Response) -> None:
        if method == "GET" and name == WEIGHTS:
            [blobs] = cache.glob("models--*/blobs")
            (blobs / "another.incomplete").write_bytes(b"")
            response.cut_at = PIECE_BYTES // 4

    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.fault = begin_another_and_cut
    with pytest.raises(HubError):
        pull(MODEL_ID, endpoint=hub.url)


def test_a_cache_that_cannot_be_listed_is_left_to_the_client(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "glob", refuse)
    assert pull(MODEL_ID, endpoint=hub.url).weights_bytes == hub.files[WEIGHTS]


def test_a_large_file_that_arrives_damaged_is_refused_and_removed(hub: FaultyHub, cache: Path) -> None:
    def damage(method: str, name: str, _: int, response: Response) -> None:
        if method == "GET" and name == WEIGHTS:
            response.body = bytes([response.body[0] ^ 1]) + response.body[1:]

    hub.fault = damage
    with pytest.raises(ChecksumMismatch, match=r"hashes to .* but the hub announced"):
        pull(MODEL_ID, endpoint=hub.url)
    assert not any(path.stat().st_size >= MIN_BYTES for path in cache.rglob("blobs/*"))
