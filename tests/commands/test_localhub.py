"""`eca-hub localhub` as a command: output, errors and exit codes."""

import json
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from eca_hub import __main__ as commandline
from eca_hub.commands.localhub import open_hub
from eca_hub.localhub.auth import BadUsersFile, Users
from tests.localhub.hub_process import client_of, running_hub
from tests.localhub.push_client import push


def main(argv: list[str]) -> int:
    return commandline.main(["localhub", *argv])


def test_the_first_start_creates_a_token_that_only_its_owner_can_read(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub, client_of(hub) as client:
        token_file = tmp_path / "hub" / "token"
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "hub" / "hub.json").stat().st_mode) == 0o600
        assert client.get("/api/whoami-v2").json()["name"] == "local"
        push(client, {"a.txt": b"a"}, {}, repo="any/name")
    with running_hub(tmp_path / "hub") as again:
        assert again.token == hub.token


def test_two_users_whose_names_differ_by_case_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text(json.dumps({"alice": "a", "Alice": "b"}))
    with pytest.raises(BadUsersFile, match="two users have the same name but for case"):
        Users.from_file(path)


def test_a_hub_loads_neither_torch_nor_the_stock_client() -> None:
    code = "import eca_hub.commands.localhub, eca_hub.localhub.app, eca_hub.localhub.server, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert not {"torch", "huggingface_hub", "eca_hub.hub"} & set(loaded)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_hub_at_once_also_with_idle_connections(tmp_path: Path, number: signal.Signals) -> None:
    with running_hub(tmp_path / "hub") as hub, client_of(hub) as client:
        client.get("/").raise_for_status()
        with socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2]))) as half:
            half.sendall(b"POST /api/validate-yaml HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
            client.get("/").raise_for_status()
            hub.process.send_signal(number)
            assert hub.process.wait(10) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prot", "1"], ["--prot"]),
        (["--port", "x"], ["port", "x"]),
        (["--port", "70000"], ["70000"]),
        (["--host", "0.0.0.0"], ["0.0.0.0", "--token_file", "--users"]),
        (["--public"], ["0.0.0.0", "--token_file"]),
        (["--host", "192.0.2.1", "--token", "secret-token"], ["192.0.2.1", "--port"]),
        (["--token", "a b"], ["token"]),
        (["--token", "secret-token", "--users", "u.json"], ["exclude"]),
        (["--users", "/nowhere.json"], ["/nowhere.json", "cannot be read"]),
        (["--token-file", "/nowhere"], ["/nowhere", "cannot be read"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    assert main(["--root", str(tmp_path / "hub"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert all(word in captured.err for word in words)
    assert "secret-token" not in captured.err


def test_the_token_may_come_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_others = ["--root", str(tmp_path / "hub"), "--host", "192.0.2.1"]
    assert main(open_to_others) == 2
    assert "ECA_HUB_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("ECA_HUB_TOKEN", "secret-token")
    assert main(open_to_others) == 2
    assert "--port" in capsys.readouterr().err, "only the address, which is not ours, stands in the way now"
    monkeypatch.setenv("ECA_HUB_TOKEN", "secret token")
    assert main(open_to_others) == 2
    assert "secret" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_token_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "token.txt").write_text("\ufeffsecret-token\r\n")
    with running_hub(tmp_path / "hub", options=("--token-file", str(tmp_path / "token.txt"))) as hub:
        headers = {"Authorization": "Bearer secret-token"}
        assert httpx2.get(f"{hub.url}/api/whoami-v2", headers=headers).json()["name"] == "local"


def test_a_mistyped_option_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", "x", "--token-fiel", "y"]) == 2
    assert "Did you mean --token_file?" in capsys.readouterr().err
    assert main(["--root", "x", "--prot", "1"]) == 2
    assert "Did you mean --port?" in capsys.readouterr().err
    assert main(["fsck"]) == 2
    assert "root" in capsys.readouterr().err


@pytest.mark.parametrize(
    "users",
    [
        [],
        {},
        {"alice": 3},
        {"alice": ""},
        {"alice": "t", "bob": "t"},
        {"alice": {"token": "t", "role": "king"}},
        {"alice": {"token": "t", "rolle": "read"}},
        {"a/b": "t"},
        {"alice": {"token": "t", "orgs": "acme"}},
        {"alice": {"token": "t", "orgs": [["acme"]]}},
    ],
)
def test_an_invalid_users_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], users: object) -> None:
    path = tmp_path / "users.json"
    path.write_text(json.dumps(users))
    assert main(["--root", str(tmp_path / "hub"), "--users", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_taken_port_and_a_taken_folder_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_hub(tmp_path / "hub") as hub:
        port = hub.url.rpartition(":")[2]
        assert main(["--root", str(tmp_path / "other"), "--port", port]) == 2
        assert f"127.0.0.1:{port}" in capsys.readouterr().err
        assert main(["--root", str(tmp_path / "hub"), "--port", "0"]) == 2
        assert "another local hub is using" in capsys.readouterr().err


def test_a_folder_that_is_not_a_hubs_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["--root", str(tmp_path), "--port", "0"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert main(["--root", str(tmp_path / "thesis.tex"), "--port", "0"]) == 2
    assert main(["fsck", "--root", str(tmp_path)]) == 2
    assert main(["gc", "--root", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_every_path_may_begin_with_the_home_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.json").write_text("[]")
    with open_hub("~/hub"):
        pass
    assert main(["fsck", "--root=~/hub"]) == 0
    assert main(["gc", "--root=~/hub"]) == 0
    capsys.readouterr()
    for option in ("--users=~/users.json", "--token_file=~/missing"):
        assert main(["--root=~/hub", "--port=0", option]) == 2
        assert str(tmp_path / option.partition("~/")[2]) in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--root=~/other", f"--port={taken.getsockname()[1]}"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "users.json"]


def test_a_folder_that_cannot_be_created_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    # Not even root can create a folder there.
    assert main(["--root", "/proc/hub", "--port", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_token_is_in_no_line_that_the_hub_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eca_hub", "localhub", "--root", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().split()[3]
    token = (tmp_path / "token").read_text().strip()
    httpx2.get(f"{url}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert token not in out + err
    assert str(tmp_path / "token") in err


@pytest.mark.parametrize("action", ["gc", "fsck"])
def test_a_name_that_no_folder_can_have_is_no_hub(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commandline.main(["localhub", action, "--root", "x" * 300]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith("eca-hub localhub: xxx")
