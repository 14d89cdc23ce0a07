"""`eca-hub convert`: which card the license of a package is read from."""

import errno
from pathlib import Path
from typing import Any

import pytest

from eca_hub.__main__ import main
from eca_hub.hub.package import Package, read_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def licenses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The licenses of the folders that would be written for timm; nothing is written."""
    found: list[str] = []
    monkeypatch.setattr(
        "eca_hub.hub.pretrained.export_to_timm", lambda model, folder, *, config, facts: found.append(facts.license)
    )
    return found


@pytest.mark.parametrize("source", ["acme/x", "acme/x@main", "hf-hub:acme/x"])
def test_the_license_is_that_of_the_commit_whose_weights_are_converted(
    source: str, tiny_package: Path, tmp_path: Path, licenses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = read_folder(tiny_package)
    package = Package("acme/x", COMMIT, local.config_bytes, local.weights_bytes)
    cards = {COMMIT: b"---\nlicense: mit\n---\n", "main": b"---\nlicense: apache-2.0\n---\n"}
    monkeypatch.setattr("eca_hub.hub.pull.pull", lambda _: package)
    monkeypatch.setattr("eca_hub.hub.pull._read_optional", lambda download, name, commit: cards[commit])
    assert main(["convert", source, "--format", "timm", "--to", str(tmp_path / "timm")]) == 0
    assert licenses == ["mit"]


def test_a_folder_whose_card_cannot_be_read_is_converted_without_a_license(
    tiny_package: Path,
    tmp_path: Path,
    licenses: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = Path.read_bytes

    def read_bytes(path: Path) -> Any:
        if path.name == "README.md":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert main(["convert", str(tiny_package), "--format", "timm", "--to", str(tmp_path / "timm")]) == 0
    assert licenses == [""]
    assert (
        f"{tiny_package / 'README.md'} cannot be read: Permission denied. A license stated there is not used."
        in capsys.readouterr().err
    )
