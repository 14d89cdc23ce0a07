"""The command line: fast, and a mistake gets one sentence and exit code 2."""

import ast
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from eca_hub.__main__ import _EXTRA_OF, COMMANDS, main
from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidUsage
from tests.conftest import make_image


def run_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "eca_hub", *args], capture_output=True, text=True, check=False)


def test_help_is_one_line_a_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from eca_hub.__main__ import main; main(['--help']); "
        "print(sorted({'torch', 'lightning', 'timm', 'huggingface_hub', 'jsonargparse', 'PIL'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *lines, imported = output.splitlines()
    assert [name for name in COMMANDS if not any(line.split()[:1] == [name] for line in lines)] == []
    assert imported == "[]"


def test_every_command_names_a_function_that_exists() -> None:
    """By reading the modules: importing all of them would import torch and Lightning."""
    missing = []
    for command, (_, target) in COMMANDS.items():
        module_name, function_name = target.split(":")
        spec = importlib.util.find_spec(module_name)
        source = Path(spec.origin).read_text() if spec and spec.origin else ""
        functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        if function_name not in functions:
            missing.append(command)
    assert missing == []


SCREEN_AND_A_HALF = 36
"""Lines. A screen has 24."""


def test_the_help_of_every_command_is_short_and_needs_no_torch() -> None:
    code = (
        "import contextlib, io, json, sys\n"
        "from eca_hub.__main__ import COMMANDS, main\n"
        "helps = {}\n"
        "for command in COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):\n"
        "        main([command, '--help'])\n"
        "    helps[command] = output.getvalue()\n"
        "    assert 'torch' not in sys.modules, command\n"
        "print(json.dumps(helps))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    helps: dict[str, str] = json.loads(output)
    assert [command for command, text in helps.items() if f"usage: eca-hub {command}" not in text] == []
    num_lines = {command: text.count("\n") for command, text in helps.items()}
    assert {command: num for command, num in num_lines.items() if num > SCREEN_AND_A_HALF} == {}
    assert [command for command, text in helps.items() if "ARG:" in text or "0x" in text] == []


def test_the_help_shows_defaults_that_are_not_empty_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("try", "Try something.", examples=["eca-hub try --often 3"], env_prefix="TRY")
    parser.add_argument("--often", type=int, default=0, help="How often.")
    parser.add_argument("--deeply", type=int, help="How deeply.")
    with pytest.raises(SystemExit):
        parser.read(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: eca-hub try [options]\n")
    assert "How often. (default: 0)\n" in shown
    assert "How deeply.\n" in shown
    assert "examples:\n  eca-hub try --often 3\n" in shown


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["classify", "x.png", "--model", "a/b", "--topk", "3"], "--top_k"),
        (["push", "run", "a/b", "--privat"], "--private"),
        (["fit", "--run_dri", "x"], "--run_dir"),
        (["fit", "--model.lable_smoothing", "0.1"], "--model.label_smoothing"),
        (["localhub", "--rot", "x"], "--root"),
        (["serve", "--max_bach", "3"], "--max_batch"),
        (["quickstart", "--work_dir", "x"], "--workdir"),
    ],
)
def test_a_mistyped_option_gets_a_suggestion(args: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert f"Did you mean {meant}?" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--often", ""], "--often must be a whole number, not ''."),
        (["--often", "x"], "--often must be a whole number, not 'x'."),
        (["--mean", "1", "nan", "2"], "--mean must be a number, not 'nan'."),
        (["--limit", "x"], "--limit must be a whole number, not 'x'."),
    ],
)
def test_a_value_of_the_wrong_type_gets_a_sentence(words: list[str], sentence: str) -> None:
    parser = CommandParser("try", "Try something.")
    parser.add_argument("--often", type=int)
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--limit", type=int | None)
    with pytest.raises(InvalidUsage) as raised:
        parser.read(words)
    assert str(raised.value) == f"{sentence} All options: eca-hub try --help"


def test_words_after_two_dashes_stay_as_they_are() -> None:
    parser = CommandParser("try", "Try something.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--top_k", type=int)
    args = parser.read(["--top-k", "2", "--", "--my-photo.jpg"])
    assert (args.top_k, args.images) == (2, ["--my-photo.jpg"])


@pytest.mark.parametrize(
    ("words", "folder", "model_id", "often"),
    [
        ("runs/mine --dry-run acme/mine", "runs/mine", "acme/mine", None),
        ("--often 2 acme/mine --dry_run", None, "acme/mine", 2),
        ("runs/mine --often -2 --mean 1 2 3 acme/mine --dry_run", "runs/mine", "acme/mine", -2),
        ("- --often=3 --dry_run -- --mine", "-", "--mine", 3),
    ],
)
def test_options_may_stand_between_names(words: str, folder: str | None, model_id: str, often: int | None) -> None:
    parser = CommandParser("try", "Try something.")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("model_id")
    parser.add_argument("--often", type=int)
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--dry_run", action="store_true")
    args = parser.read(words.split())
    assert (args.folder, args.model_id, args.often, args.dry_run) == (folder, model_id, often, True)


def test_a_word_too_many_is_not_called_an_option() -> None:
    parser = CommandParser("try", "Try something.")
    parser.add_argument("--often", type=int)
    with pytest.raises(InvalidUsage, match=r"^'again' is one word too many\."):
        parser.read(["again"])
    parser.add_argument("name")
    with pytest.raises(InvalidUsage, match=r"^'again' is one word too many\."):
        parser.read(["x", "--often", "3", "again"])
    with pytest.raises(InvalidUsage, match=r"^There is no option --oft\. Did you mean --often\?"):
        parser.read(["x", "--oft", "3"])


def run_in_shell(line: str) -> subprocess.CompletedProcess[str]:
    command = line.replace("eca-hub", f"{shlex.quote(sys.executable)} -m eca_hub")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="has no bash")
@pytest.mark.parametrize("line", ["eca-hub models --releases >&-", "eca-hub --version >&-"])
def test_a_command_whose_output_is_closed_succeeds(line: str) -> None:
    done = run_in_shell(line)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no bash")
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_is_not_printed_elsewhere_when_standard_error_cannot_be_written(redirection: str) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("has no /dev/full")
    done = run_in_shell(f"eca-hub nosuch {redirection}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("models --releases", " models"),
        ("--help", ""),
        ("classify --help", " classify"),
        ("serve --help_all", " serve"),
    ],
)
@pytest.mark.parametrize("environment", ["", "PYTHONUNBUFFERED=1 "])
def test_a_full_disk_under_the_output_is_one_sentence(words: str, name: str, environment: str) -> None:
    done = run_in_shell(f"{environment}eca-hub {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == f"eca-hub{name}: The output cannot be written: No space left on device.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="has no bash")
def test_letters_that_a_terminal_lacks_are_escaped() -> None:
    done = run_in_shell("PYTHONIOENCODING=ascii eca-hub card eca_mobilenet_v2.photos34")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"H. Kjellstr\xf6m" in done.stdout


def test_a_missing_extra_names_the_install_command() -> None:
    code = "import sys; sys.modules['lightning'] = None; from eca_hub.__main__ import main; sys.exit(main(['fit']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'eca-hub[train]'" in done.stderr


IMPORT_NAMES = {"scikit-learn": "sklearn", "markdown-it-py": "markdown_it"}
"""Of packages whose module is not named as they are."""
NOT_A_COMMAND = ("dev", "bench")
"""Extras for tests and experiments."""


def test_every_package_of_an_extra_is_known_to_the_sentence_about_a_missing_one() -> None:
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = {}
    for extra, requirements in extras["optional-dependencies"].items():
        for requirement in requirements if extra not in NOT_A_COMMAND else ():
            package = re.split(r"[^\w-]", requirement)[0]
            module = IMPORT_NAMES.get(package) or package.replace("-", "_")
            wanted["opentelemetry" if module.startswith("opentelemetry") else module] = extra
    assert wanted == _EXTRA_OF


@pytest.mark.parametrize("args", [["serve"], ["serve", "--help"]])
def test_serve_without_its_extra_names_the_install_command(args: list[str]) -> None:
    code = f"import sys; sys.modules['pydantic'] = None; from eca_hub.__main__ import main; sys.exit(main({args}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    assert "needs the package 'pydantic'. Install it: pip install 'eca-hub[serve]'" in sentence


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("error", [InvalidUsage("Wrong."), KeyboardInterrupt()])
def test_an_error_removes_the_progress_line_before_it(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        show_progress("reading x")
        raise error

    monkeypatch.setattr("eca_hub.commands.models.main", fail)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    main(["models"])
    assert terminal.getvalue().removeprefix("\r\x1b[Kreading x").startswith("\r\x1b[K")


RUN_A_FAKE = """
import sys
from eca_hub.__main__ import main
from eca_hub.commands.progress import show_progress
import eca_hub.commands.{command} as command
def fake(argv):
    {work}
    return {code}
command.main = fake
sys.exit(main([{command!r}]))
"""
WRITE_ERRORS = "import logging; print('x', file=sys.stderr); logging.warning('x'); show_progress('x'); print('done')"
PRINT_TO_NO_READER = "[print('x' * 9999, flush=True) for _ in range(99)]"


@pytest.mark.skipif(sys.platform == "win32", reason="has no bash")
@pytest.mark.parametrize(
    ("command", "work", "code", "expected"),
    [
        ("models", PRINT_TO_NO_READER, 2, 0),
        ("push", PRINT_TO_NO_READER, 0, 1),
        ("push", "sys.stdin.read(); print('published')", 0, 0),
        ("push", "sys.stdin.read(); print('published')", 2, 2),
        ("push", "print('x'); raise KeyboardInterrupt", 0, 130),
    ],
)
def test_a_reader_that_has_exited_hides_no_unfinished_work(command: str, work: str, code: int, expected: int) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", RUN_A_FAKE.format(command=command, work=work, code=code)],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == expected
    assert done.stderr == ("eca-hub push: The output cannot be written: Broken pipe.\n" if expected == 1 else "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes that do not block")
def test_a_command_goes_on_when_a_pipe_of_standard_error_is_full() -> None:
    reader, pipe = os.pipe()
    os.set_blocking(pipe, False)
    code = RUN_A_FAKE.format(command="models", work="print('x' * 99999, file=sys.stderr); print('done')", code=0)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=pipe, check=False)
    os.close(reader)
    os.close(pipe)
    assert (done.returncode, done.stdout) == (0, b"done\n")


@pytest.mark.skipif(sys.platform == "win32", reason="has no terminals as files")
def test_a_command_goes_on_when_its_terminal_has_been_closed() -> None:
    user, terminal = os.openpty()
    os.close(user)
    code = RUN_A_FAKE.format(command="models", work=WRITE_ERRORS, code=0)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=terminal, check=False)
    os.close(terminal)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_full_disk_under_another_file_is_not_taken_for_one_under_the_output() -> None:
    work = "raise OSError(28, 'No space left on device', 'weights')"
    code = RUN_A_FAKE.format(command="models", work=work, code=0)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "The output cannot be written" not in done.stderr
    assert done.stderr.endswith("OSError: [Errno 28] No space left on device: 'weights'\n")


@pytest.mark.slow
def test_classify_prints_a_line_for_each_image(tiny_package: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(make_image())
    bad.write_bytes(b"nothing")
    done = run_command("classify", str(good), str(bad), "--model", str(tiny_package), "--top_k", "2")
    assert done.returncode == 2
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{good}  ")
    assert first.count(".") >= 2
    assert second.startswith(f"{bad}: The bytes are not an image")
    assert done.stderr == ""


def test_a_folder_without_a_package_gives_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "x.png", "--model", str(tmp_path)]) == 2
    where = f"{tmp_path} has no config.json, nor has {tmp_path / 'model'}."
    assert capsys.readouterr().err == f"eca-hub classify: {where} Did the training run finish?\n"


def test_a_model_that_is_neither_folder_nor_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "x.png", "--model", "nosuch"]) == 2
    assert "'nosuch' is neither a folder nor OWNER/NAME" in capsys.readouterr().err
