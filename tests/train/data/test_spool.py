"""Records of a temporary file: read in any order, in another process, and removed with the process."""

import errno
import os
import pickle
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data.spool import Spool

RECORDS = [(0, b"abc", "first"), (1, b"", "empty"), (0, b"de", "")]


class Counted:
    times = 0

    def __call__(self) -> Iterator[tuple[int, bytes, str]]:
        Counted.times += 1
        yield from RECORDS


def test_records_are_written_once_and_read_in_any_order() -> None:
    Counted.times = 0
    spool = Spool(Counted(), 10)
    for index in (2, 0, 1, 2):
        kind, content, name = RECORDS[index]
        assert spool.read(index) == (kind, content)
        assert spool.name(index) == name
    copy = pickle.loads(pickle.dumps(spool))
    assert copy.read(2) == (0, b"de")
    assert Counted.times == 1


def test_too_little_free_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
    with pytest.raises(InvalidConfig, match=r"takes 3.0 GiB in .* Set TMPDIR"):
        Spool(Counted(), 3 * 2**30).read(0)


def test_a_disk_that_fills_up_meanwhile_is_reported_with_its_folder() -> None:
    def records() -> Iterator[tuple[int, bytes, str]]:
        yield RECORDS[0]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InvalidConfig, match=r"cannot be unpacked into .*: No space left on device\. Set TMPDIR"):
        Spool(records, 10).read(0)


def test_a_machine_without_a_temporary_folder_is_told_to_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(InvalidConfig, match=r"No usable temporary directory found in \['/tmp'\]\. Set TMPDIR"):
        Spool(Counted(), 10).read(0)
