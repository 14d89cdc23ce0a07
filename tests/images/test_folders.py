"""Folders as operating systems, editors and storage devices leave them."""

import os
from pathlib import Path

import pytest

from eca_hub.images.folders import is_ignored, kind_of, walk_files


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "._a.png", ".gitkeep", ".ipynb_checkpoints", ".nfs00000001", ".Trash-1000", "Thumbs.db",
        "Thumbs.db:encryptable", "desktop.ini", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "Icon\r",
    ],
)  # fmt: skip
def test_files_of_a_system_are_ignored(name: str) -> None:
    assert is_ignored(name)


@pytest.mark.parametrize("name", ["a.png", "icons", "thumbs", "a:b.png", "lost and found"])
def test_other_names_are_the_users(name: str) -> None:
    assert not is_ignored(name)


def test_linked_folders_are_read_once_and_circles_end(tmp_path: Path) -> None:
    for folder in ("a", "b", "store"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").touch()
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "z1").symlink_to(tmp_path / "store")
    (tmp_path / "a" / "z2").symlink_to(tmp_path / "store")
    found = [str(path.relative_to(tmp_path)) for path in walk_files(tmp_path / "a")]
    assert found == ["a/0.png", "a/to_b/0.png", "a/z1/0.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipes_are_left_out_and_broken_links_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link_to_pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "broken.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "photo.png").touch()
    assert [path.name for path in walk_files(tmp_path)] == ["broken.png", "circle.png", "photo.png"]
    assert kind_of(tmp_path / "pipe") == "unsupported"
