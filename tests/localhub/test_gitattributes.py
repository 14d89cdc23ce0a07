"""Patterns of .gitignore and .gitattributes mean what git means."""

import pytest

from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.gitattributes import DEFAULT_GITATTRIBUTES, check_cost, parse_gitattributes, parse_gitignore


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
    assert parse_gitignore(pattern).holds_for(path) is verdict


def test_the_last_line_with_a_filter_decides_what_goes_to_lfs() -> None:
    patterns = parse_gitattributes("*.bin filter=lfs -text\n*.txt text\nsmall.bin -filter\n")
    assert patterns.holds_for("x/a.bin")
    assert not patterns.holds_for("x/small.bin")
    assert not patterns.holds_for("a.txt")


def test_more_patterns_and_paths_than_one_request_can_compare_are_refused() -> None:
    folder = [f"data/train/class_{index % 10}/image_{index:05}.jpg" for index in range(256)]
    ordinary = parse_gitignore("\n".join(f"*.ending{index}" for index in range(300)))
    check_cost(folder, parse_gitattributes(DEFAULT_GITATTRIBUTES), ordinary)
    long = parse_gitignore("\n".join(f"{'*a' * 60}{index}" for index in range(2000)))
    with pytest.raises(HubHTTPError, match="fewer files") as refused:
        check_cost([f"{'a/' * 100}{'a' * 200}"] * 1000, long)
    assert refused.value.status == 422


def test_a_pattern_longer_than_any_path_matches_nothing() -> None:
    assert not parse_gitignore("*" * 2000).holds_for("a.txt")
