"""The line on a terminal that shows what a command is doing."""

import pytest

from eca_hub.commands.progress import show_progress


@pytest.mark.parametrize(
    ("term", "is_terminal", "expected"),
    [("xterm", True, "\r\x1b[Khalf"), ("dumb", True, ""), ("xterm", False, "")],
)
def test_progress_is_shown_on_terminals_that_can_erase_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, term: str, is_terminal: bool, expected: str
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    show_progress("half")
    assert capsys.readouterr().err == expected
