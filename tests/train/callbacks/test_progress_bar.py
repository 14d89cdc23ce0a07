"""The output of `eca-hub fit` on a pseudo-terminal: the bar, and the lines that a log file gets as well."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from lightning.pytorch import Trainer

from eca_hub.models.config import ImageConfig
from eca_hub.train.callbacks.progress_bar import ProgressBar
from eca_hub.train.data.synthetic import SyntheticData
from eca_hub.train.module import ImageClassifier
from tests.train.runs import CONFIG

ROWS, COLUMNS = 30, 100
BAR = re.compile(
    r"epoch [123]/3 +[━╸╺ ]+ \d/4 +loss: \d\.\d{3} +top1: [01]\.\d{3} +images/s: \d+ +left: (\d+ min )?\d+ s",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that a run writes to a terminal, control sequences included."""
    run_dir = tmp_path_factory.mktemp("terminal") / "run"
    run_dir.with_suffix(".yaml").write_text(CONFIG)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "eca_hub", "fit", "-c", f"{run_dir}.yaml", "--run_dir", str(run_dir)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    chunks = []
    while chunk := _read(ours):
        chunks.append(chunk)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(chunks).decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # Linux raises this when the last process has closed its side.
        return b""


def screen(written: str) -> list[str]:
    """The lines that are left on an endless screen: carriage return, line feed, cursor up, and line erased."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.startswith("\x1b["):
            if token.endswith("A"):
                row -= int(token[2:-1] or 1)
            elif token == "\x1b[2K":
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.slow
def test_the_bar_shows_loss_accuracy_speed_and_the_remaining_time(written: str) -> None:
    drawn = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", written)
    assert BAR.search(drawn), drawn


class DrawnAtOnce(ProgressBar):
    """Draws every change, where the bar itself draws a frame four times a second."""

    def __init__(self) -> None:
        super().__init__(None)
        self.drawn = io.StringIO()
        self._console_kwargs |= {"file": self.drawn, "force_terminal": True, "width": COLUMNS}

    def refresh(self, hard: bool = False) -> None:
        super().refresh(hard=True)


def test_a_validation_has_a_bar_of_its_own() -> None:
    small = ImageConfig(height_px=8, width_px=8, crop=1.0)
    data = SyntheticData(num_train=8, num_eval=20, batch_size=8, image=small)
    module = ImageClassifier("resnet20", labels=data.labels, image=small)
    bar = DrawnAtOnce()
    Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[bar]
    ).validate(module, data, verbose=False)
    drawn = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", bar.drawn.getvalue())
    for done in (1, 2, 3):
        assert re.search(rf"validation [━╸╺ ]+ {done}/3", drawn), drawn


@pytest.mark.slow
def test_after_the_run_the_screen_shows_the_lines_of_a_log_file_and_no_bar(written: str) -> None:
    epochs, rest = screen(written)[:3], screen(written)[3:]
    for number, line in enumerate(epochs, 1):
        assert re.fullmatch(
            rf"epoch {number}/3  train_loss [\d.]+  train_top1 [\d.]+  val_loss [\d.]+  val_top1 [\d.]+  "
            r"\d+ images/s  [\d.]+ s(  \d+ s left)?",
            line,
        )
    assert re.match(r"test top-1 [\d.]+, top-5 [\d.]+, mean over classes [\d.]+ on 20 images$", rest[0])
    assert re.match(r"best validation top-1 [\d.]+, top-5 [\d.]+ in epoch [123] of 3$", rest[1])
    assert re.match(r"12 steps in \d+ s, \d+ images/s, peak memory \d+ MiB$", rest[2])
    assert rest[-1].startswith("Next: eca-hub push ")
    assert "━" not in "".join(screen(written))


@pytest.mark.slow
def test_the_terminal_shows_its_cursor_again(written: str) -> None:
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l") > 0
