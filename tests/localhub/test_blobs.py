"""How large blobs reach the disk while they arrive."""

import concurrent.futures
import hashlib
import threading
from pathlib import Path

import pytest

from eca_hub.localhub import blobs
from eca_hub.localhub.blobs import Blobs


def test_a_client_that_is_faster_than_the_disk_waits_while_it_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is_ready = threading.Event()
    monkeypatch.setattr(blobs, "_fdatasync", lambda descriptor: disk_is_ready.wait())
    monkeypatch.setattr(blobs, "WRITEBACK_BYTES", 10)
    monkeypatch.setattr(blobs, "MAX_DIRTY_BYTES", 40)
    with (
        Blobs(tmp_path / "blobs", tmp_path / "tmp").writer() as writer,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        for _ in range(4):
            # The first piece starts a write to the disk that does not end; 30 bytes more are less than the limit.
            writer.write(bytes(10))
        late = pool.submit(writer.write, bytes(10))
        with pytest.raises(concurrent.futures.TimeoutError):
            late.result(timeout=0.2)
        disk_is_ready.set()
        late.result(timeout=30)
        assert writer.finish() == hashlib.sha256(bytes(50)).hexdigest()
