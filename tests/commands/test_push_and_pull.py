"""`eca-hub push` and `eca-hub pull` against a local hub: what they print, and that the printed commands work."""

import errno
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from eca_hub.__main__ import main
from eca_hub.hub.package import find_package, read_folder
from tests.conftest import make_image
from tests.localhub.hub_process import Hub, running_hub


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub") / "root") as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The client reads its settings when it is imported, so they are set where it keeps them."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", running.token)
    return running


def test_a_dry_run_lists_the_files_and_sends_nothing(
    hub: Hub, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny_package), "acme/dry", "--dry_run"]) == 0
    *files, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in files] == ["config.json", "model.safetensors", "README.md"]
    assert files[1].split()[1:] == ["1.1", "MiB"]
    assert last == "Nothing was sent to acme/dry (dry run)."
    assert main(["pull", "acme/dry"]) == 2


def test_the_command_that_each_prints_works(
    hub: Hub, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(make_image())
    for command in (
        ["push", str(tiny_package), "acme/model", "--tag", "v1"],
        ["pull", "acme/model"],
        ["pull", "acme/model@v1"],
        ["pull", f"{hub.url}/acme/model/tree/v1"],
        ["pull", "acme/model", "--to", str(tmp_path / "copy")],
    ):
        assert main(command) == 0, command
        printed = capsys.readouterr().out.splitlines()[-1].removeprefix("Try: eca-hub ")
        words = [str(image) if word == "image.png" else word for word in shlex.split(printed)]
        assert main(words) == 0, words
        assert capsys.readouterr().out.startswith(str(image))


def test_the_command_for_a_detector_is_detect(
    hub: Hub, detector_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["push", str(detector_package), "acme/detector"],
        ["pull", "acme/detector"],
        ["pull", "acme/detector", "--to", str(tmp_path / "copy")],
    ):
        assert main(command) == 0, command
        assert capsys.readouterr().out.splitlines()[-1].startswith("Try: eca-hub detect image.png --model "), command


def test_a_model_of_this_package_and_a_folder_are_copied(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("eca_resnet20.cifar10", str(tiny_package))):
        copy = tmp_path / str(number)
        assert main(["pull", name, "--to", str(copy)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"Try: eca-hub classify image.png --model {copy}"
        source = find_package(name)
        names = {"config.json", "model.safetensors", "README.md"}
        assert names <= {each.name for each in copy.iterdir()}
        assert all(each.read_bytes() == (source / each.name).read_bytes() for each in copy.iterdir())


def test_a_model_of_this_package_is_no_repository(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["push", str(tiny_package)], ["verify"]):
        assert main([*command, "eca_resnet20.cifar10"]) == 2
        assert "is part of eca-hub and not OWNER/NAME" in capsys.readouterr().err


def test_a_dry_run_checks_license_and_tag_and_counts_the_card_with_its_license(
    hub: Hub, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ["push", str(tiny_package), "acme/checked"]
    assert main(push) == 0
    assert main([*push, "--dry_run", "--license", "Apache 2.0"]) == 2
    assert main([*push, "--dry_run", "--tag", "..bad"]) == 2
    capsys.readouterr()
    assert main([*push, "--dry_run", "--json", "--tag", "v1", "--license", "apache-2.0"]) == 0
    changed = {each["name"]: each["is_changed"] for each in json.loads(capsys.readouterr().out)["files"]}
    assert changed == {"config.json": False, "model.safetensors": False, "README.md": True}


def test_json_names_the_model_and_the_commit(hub: Hub, tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(tiny_package), "acme/json", "--json"]) == 0
    published = json.loads(capsys.readouterr().out)
    assert main(["pull", "hf-hub:acme/json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model_id": "acme/json",
        "revision": published["revision"],
        "folder": None,
    }


def test_an_empty_folder_name_is_not_taken_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "acme/x", "--to", ""]) == 2
    assert "--to is empty. Give a new folder" in capsys.readouterr().err


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (".", str(tmp_path)):
        assert main(["pull", "eca_resnet20.cifar10", "--to", target]) == 2
        assert f"{target} is the current folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_package_of_this_machine_is_copied_and_not_called_checked(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", str(tiny_package)]) == 0
    assert "on this machine: nothing to download\n" in capsys.readouterr().out
    copy = tmp_path / "copy"
    assert main(["pull", str(tiny_package), "--to", str(copy)]) == 0
    revision = read_folder(tiny_package).revision
    assert f"{tiny_package} at {revision}, copied to {copy}\n" in capsys.readouterr().out
    assert read_folder(copy).revision == revision


def test_a_download_to_a_folder_of_the_name_of_its_repository_is_called_checked(
    hub: Hub, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(tiny_package), "acme/here", "--json"]) == 0
    revision = json.loads(capsys.readouterr().out)["revision"]
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "acme/here", "--to", "acme/here"]) == 0
    assert capsys.readouterr().out.startswith(f"acme/here at {revision}, checked, in acme/here\n")


def test_a_name_that_no_folder_can_have_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["push", "x" * 300, "acme/x"], ["card", "x" * 300]):
        assert main(command) == 2
        assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["README.md", "confusion.png"])
def test_a_file_of_a_package_that_cannot_be_read_is_one_sentence(
    hub: Hub,
    tiny_package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    def read_bytes(path: Path) -> bytes:
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    original, locked = Path.read_bytes, package / name
    if name.endswith(".png"):
        locked.write_bytes(b"a plot")
        with (package / "README.md").open("a") as card:
            card.write(f"\n![confusion]({name})\n")
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    commands = [["push", str(package), "acme/locked"], ["pull", str(package), "--to", str(tmp_path / "copy")]]
    if name == "README.md":
        commands.append(["card", str(package)])
    for command in commands:
        assert main(command) == 2
        assert f"{locked} cannot be read: Permission denied." in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_a_copy_without_a_card_says_so(
    hub: Hub, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(tiny_package), "acme/offline"]) == 0
    assert main(["pull", "acme/offline"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    capsys.readouterr()
    assert main(["pull", "acme/offline", "--to", str(tmp_path / "copy")]) == 0
    assert "It has no README.md: the repository has none, or the cache has none" in capsys.readouterr().out


def test_a_push_of_a_package_that_cannot_be_loaded_sends_nothing(
    hub: Hub, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_package, tmp_path / "package")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "architecture": "resnet2000"}))
    assert main(["push", str(folder), "acme/broken"]) == 2
    assert "resnet2000" in capsys.readouterr().err
    assert main(["pull", "acme/broken"]) == 2


def test_a_card_without_metadata_is_shown_as_one(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_package, tmp_path / "package")
    (folder / "README.md").write_text("# A network")
    assert main(["card", str(folder)]) == 0
    assert "The metadata is empty" in capsys.readouterr().out
