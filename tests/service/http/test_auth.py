"""API keys, key files and expiry."""

import hashlib
import hmac
import logging
import os
import pickle
from pathlib import Path

import pytest

from eca_service.errors import BadSetting, Unauthorized
from eca_service.http.auth import ApiKeys, KeyFile

KEY = "SENTINEL-one"


def sent(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"authorization", value) for value in values)]


@pytest.mark.parametrize("value", [b"Bearer SENTINEL-one", b"bearer SENTINEL-one", b"BEARER two"])
def test_each_key_is_accepted(value: bytes) -> None:
    ApiKeys([KEY, "two"]).check(sent(value))


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Bearer wrong"],
        [b"Bearer SENTINEL-on"],
        [b"Bearer SENTINEL-one "],
        [b"Bearer  SENTINEL-one"],
        [b"Bearer SENTINEL-one\n"],
        [b"Basic SENTINEL-one"],
        [b"SENTINEL-one"],
        [b"Bearer \xff\xfe"],
        [b"Bearer " + b"x" * 10_000],
        [b"Bearer SENTINEL-one", b"Bearer SENTINEL-one"],
    ],
)
def test_anything_else_is_refused(values: list[bytes]) -> None:
    with pytest.raises(Unauthorized):
        ApiKeys([KEY]).check(sent(*values))


def test_only_hashes_are_kept_and_all_of_them_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ApiKeys([KEY, "two", "three"])
    assert KEY.encode() not in pickle.dumps(keys)
    compared: list[bytes] = []
    constant_time = hmac.compare_digest

    def compare(sent_digest: bytes, known: bytes) -> bool:
        compared.append(known)
        return constant_time(sent_digest, known)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for value in (b"Bearer SENTINEL-one", b"Bearer wrong"):
        compared.clear()
        keys.authenticates(sent(value))
        assert compared == [hashlib.sha256(key.encode()).digest() for key in (KEY, "two", "three")]


def test_without_keys_every_request_is_accepted() -> None:
    ApiKeys().check(sent())
    assert not ApiKeys()


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("three\n\n  four  \n")
    keys = ApiKeys.from_env({"ECA_API_KEYS": "one, two,,"}, str(file))
    for key in ("one", "two", "three", "four"):
        keys.check(sent(f"Bearer {key}".encode()))
    assert not ApiKeys.from_env({"ECA_API_KEYS": ""}, "")
    for text in (" , ", ",", " "):
        with pytest.raises(BadSetting, match="ECA_API_KEYS is set and holds no key"):
            ApiKeys.from_env({"ECA_API_KEYS": text}, "")
    with pytest.raises(BadSetting, match="ECA_API_KEYS has bytes that are not UTF-8") as refusal:
        ApiKeys.from_env({"ECA_API_KEYS": os.fsdecode(b"secret\xff")}, "")
    assert "secret" not in str(refusal.value)


def test_a_file_without_keys_stops_the_startup(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    for name in ("absent", "empty", "binary"):
        with pytest.raises(BadSetting):
            ApiKeys.from_env({}, str(tmp_path / name))


class FakeKeyFile:
    """A key file and a fake clock."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "keys"
        self.now_s = 1_800_000_000.0
        self.write(text)
        self.now_s += 60
        self.keys = ApiKeys(["of-the-environment"], KeyFile(str(self.path), self.clock), self.clock)

    def clock(self) -> float:
        return self.now_s

    def write(self, text: str) -> None:
        """Write the file at this moment of the clock."""
        self.path.write_text(text)
        os.utime(self.path, (self.now_s, self.now_s))

    def accepted(self) -> list[str]:
        """Return the keys that are accepted."""
        names = ("alice", "bob", "carol", "of-the-environment", "")
        return [name for name in names if self.keys.authenticates(sent(f"Bearer {name}".encode()))]


ALL = ["alice", "bob", "of-the-environment"]


def test_a_key_that_is_removed_from_the_file_is_revoked_without_a_restart(tmp_path: Path) -> None:
    fake = FakeKeyFile(tmp_path, "alice\nbob\n")
    assert fake.accepted() == ALL
    fake.write("bob\ncarol\n")
    fake.now_s += 3600
    assert fake.accepted() == ["bob", "carol", "of-the-environment"], (
        "the first request after a long pause uses the current file"
    )


def test_a_file_that_is_being_written_changes_nothing_until_it_is_complete(tmp_path: Path) -> None:
    fake = FakeKeyFile(tmp_path, "alice\nbob\n")
    for text in ("", "car", "carol\nali"):
        fake.write(text)
        fake.now_s += 0.6
        assert fake.accepted() == ALL
    fake.write("carol\nalice\n")
    fake.now_s += 1.1
    assert fake.accepted() == ["alice", "carol", "of-the-environment"]


def test_a_file_with_a_future_timestamp_is_read_when_it_was_unchanged_twice(tmp_path: Path) -> None:
    fake = FakeKeyFile(tmp_path, "alice\nbob\n")
    fake.now_s += 10_000
    fake.write("bob\n")
    fake.now_s -= 9_000
    assert fake.accepted() == ALL
    fake.now_s += 1
    assert fake.accepted() == ["bob", "of-the-environment"]


def test_the_file_is_checked_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, looks, stat = FakeKeyFile(tmp_path, "alice\nbob\n"), [], Path.stat

    def look(path: Path) -> os.stat_result:
        looks.append(path)
        return stat(path)

    monkeypatch.setattr(Path, "stat", look)
    for _ in range(40):
        fake.now_s += 0.25
        fake.keys.authenticates(sent(b"Bearer alice"))
    assert len(looks) == 10


def test_an_empty_file_revokes_all_of_its_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeKeyFile(tmp_path, "alice\nbob\n")
    assert fake.accepted() == ALL
    fake.write("\n")
    for _ in range(5):
        fake.now_s += 10
        assert fake.accepted() == ["of-the-environment"]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith("is empty: all of its keys are revoked")
    fake.write("alice\n")
    fake.now_s += 10
    assert fake.accepted() == ["alice", "of-the-environment"]


def test_when_its_only_source_of_keys_is_emptied_the_service_is_closed_and_not_open(tmp_path: Path) -> None:
    fake = FakeKeyFile(tmp_path, "alice\n")
    keys = ApiKeys([], KeyFile(str(fake.path), fake.clock), fake.clock)
    fake.write("")
    fake.now_s += 10
    for value in (b"Bearer alice", b"Bearer ", b"Bearer"):
        with pytest.raises(Unauthorized):
            keys.check(sent(value))
    with pytest.raises(Unauthorized):
        keys.check(sent())


@pytest.mark.parametrize("damage", ["removed", "scrambled", "a bad line"])
def test_a_missing_or_malformed_file_leaves_its_last_keys_valid_and_an_error_every_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    fake = FakeKeyFile(tmp_path, "alice\nbob\n")
    if damage == "removed":
        fake.path.unlink()
    elif damage == "scrambled":
        fake.path.write_bytes(b"\xff\xfe")
    else:
        fake.write("SENTINEL until tomorrow\n")
    for _ in range(14):
        fake.now_s += 10
        assert fake.accepted() == ALL
    assert len(caplog.records) == 3, "at once, after a minute and after two"
    for record in caplog.records:
        assert record.levelno == logging.ERROR
        assert record.getMessage().startswith("The last keys that were read stay valid: ")
        assert "SENTINEL" not in record.getMessage()
    fake.write("alice\n")
    fake.now_s += 10
    assert fake.accepted() == ["alice", "of-the-environment"]
    caplog.clear()
    fake.now_s += 600
    fake.accepted()
    assert not caplog.records


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfalice\r\nbob 2999-01-01\r\n")
    keys = ApiKeys([], KeyFile(str(tmp_path / "keys")))
    for key in (b"alice", b"bob"):
        assert keys.authenticates(sent(b"Bearer " + key))


def test_an_expired_key_is_refused_and_a_key_is_still_required(tmp_path: Path) -> None:
    # The clock stands at 2027-01-15T08:01:00Z.
    fake = FakeKeyFile(tmp_path, "alice 2027-01-15T08:02:00Z\nbob 2027-01-16\ncarol 2027-01-15T08:00:00Z\n")
    assert fake.accepted() == ALL
    fake.now_s += 60
    assert fake.accepted() == ["bob", "of-the-environment"]
    fake.now_s += 86_400
    assert fake.accepted() == ["of-the-environment"]
    over = ApiKeys([], KeyFile(str(fake.path), fake.clock), fake.clock)
    with pytest.raises(Unauthorized):
        over.check(sent())


@pytest.mark.parametrize("line", ["SENTINEL tomorrow", "SENTINEL 2027-01-01 12:00", "SENTINEL 2027-13-01"])
def test_a_malformed_line_stops_the_startup_and_is_not_repeated(tmp_path: Path, line: str) -> None:
    (tmp_path / "keys").write_text(f"alice\n{line}\n")
    with pytest.raises(BadSetting, match="Line 2 of") as refusal:
        KeyFile(str(tmp_path / "keys"))
    assert "SENTINEL" not in str(refusal.value)
