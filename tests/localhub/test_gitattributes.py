"""Patterns of .gitignore and .gitattributes mean what git means."""

import pytest

from eca_hub.localhub.gitattributes import is_ignored, is_lfs_by_name


@pytest.mark.parametrize(
    ("pattern", "path", "verdict"),
    [
        ("*.bin", "a/b/model.bin", True),
        ("*.bin", "model.bin.txt", False),
        ("/a.txt", "a.txt", True),
        ("/a.txt", "b/a.txt", False),
        ("build/", "a/build/x.txt", True),
        ("build/", "build", False),
        ("a/**/z.txt", "a/b/c/z.txt", True),
        ("a/**/z.txt", "a/z.txt", True),
        ("logs/**", "logs/x/y", True),
        ("[ab].txt", "a.txt", True),
        ("*.txt\n!keep.txt", "keep.txt", False),
        ("# *.txt", "a.txt", False),
        ("\ufeff*.txt", "a.txt", True),
        ("*a" * 200, "a" * 200 + "b", False),
    ],
)
def test_patterns_of_gitignore_mean_what_git_means(pattern: str, path: str, verdict: bool) -> None:
    assert is_ignored(path, pattern) is verdict


def test_the_last_line_with_a_filter_decides_what_goes_to_lfs() -> None:
    attributes = "*.bin filter=lfs -text\n*.txt text\nsmall.bin -filter\n"
    assert is_lfs_by_name("x/a.bin", attributes)
    assert not is_lfs_by_name("x/small.bin", attributes)
    assert not is_lfs_by_name("a.txt", attributes)
