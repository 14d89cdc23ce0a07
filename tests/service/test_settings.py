"""Settings: their sources, their allowed values, and the messages for wrong ones."""

import subprocess
import sys
from typing import Any

import pytest

from eca_hub import DEFAULT_RELEASE
from eca_hub.__main__ import main
from eca_service.__main__ import read_settings
from eca_service.errors import BadSetting
from eca_service.settings import RENAMED, Settings
from tests.service.app_fixtures import app_with


def test_options_win_over_the_environment_and_that_over_the_defaults() -> None:
    environment = {"ECA_MODEL": "acme/a, acme/b@v1", "ECA_MAX_BATCH": "3", "ECA_PORT": "81", "ECA_DEVICE": ""}
    settings = read_settings(["--port", "82"], environment)
    assert settings.model == ("acme/a", "acme/b@v1")
    assert (settings.max_batch, settings.port, settings.host, settings.device) == (3, 82, "127.0.0.1", "auto")
    assert read_settings(["--model", "acme/c", "--model=acme/d"], environment).model == ("acme/c", "acme/d")


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("1", True), ("on", True), ("no", False), ("0", False), ("False", False)]
)
def test_a_switch_reads_the_usual_words(word: str, value: bool) -> None:
    assert read_settings([], {"ECA_MODEL": "a/b", "ECA_EXPLAIN": word}).explain is value
    assert read_settings(["--model", "a/b", "--explain", word], {}).explain is value
    assert read_settings(["--model", "a/b", "--explain"], {"ECA_EXPLAIN": word}).explain is True


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_option_name_still_works_with_one_warning(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert getattr(read_settings(["--model", "a/b", f"--{old}", "7"], {}), new) == 7
    assert capsys.readouterr().err == f"eca-hub serve: --{old} is now called --{new}.\n"
    assert getattr(read_settings(["--model", "a/b"], {f"ECA_{old.upper()}": "7"}), new) == 7
    assert capsys.readouterr().err == f"eca-hub serve: ECA_{old.upper()} is now called ECA_{new.upper()}.\n"
    environment = {f"ECA_{new.upper()}": "8"}
    assert getattr(read_settings(["--model", "a/b", f"--{old}", "7"], environment), new) == 7
    assert getattr(read_settings(["--model", "a/b", f"--{new}", "9"], {f"ECA_{old.upper()}": "7"}), new) == 9


def help_text(option: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ending:
        read_settings([option], {})
    assert ending.value.code == 0
    return capsys.readouterr().out


def test_help_fits_a_screen_and_a_half_and_has_groups_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text("--help", capsys)
    assert text.count("\n") <= 38
    assert max(map(len, text.splitlines())) <= 116
    for group in ("Model:", "Network:", "Limits:", "Speed:", "Keys:"):
        assert f"\n{group}\n" in text
    assert "\n  eca-hub serve --model acme/eca_resnet50 --port 8000\n" in text
    for noise in ("ARG:", "ENV:", "<function", "(type:", "null"):
        assert noise not in text
    assert "--max_queue_images" not in text


def test_help_all_has_every_setting_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text("--help_all", capsys)
    for name, field in Settings.model_fields.items():
        assert f"\n  --{name}" in text
        assert str(field.description).endswith(".")
    assert "ECA_NAME" in text


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--model", "a/b", "--model", "a/b"], "given twice"),
        (["--model", "a/b", "--max_batch", "-1"], "--max_batch must be a whole number, 0 to 1024, not '-1'."),
        (["--model", "a/b", "--deadline_ms", "0"], "--deadline_ms must be a number, 1 to 600000, not '0'."),
        (["--model", "a/b", "--deadline_ms", "nan"], "--deadline_ms must be a number, 1 to 600000, not 'nan'."),
        (["--model", "a/b", "--port", "99999"], "--port must be a whole number, 0 to 65535, not '99999'."),
        (["--model", "a/b", "--port", "x"], "--port must be a whole number, 0 to 65535, not 'x'."),
        (["--model", "a/b", "--max_image_mib", "64"], "--max_request_mib is 32, less than one image"),
        (["--model", "a/b", "--precision", "fp8"], "--precision must be auto, fp32, bf16 or fp16, not 'fp8'."),
        (["--model", "a/b", "--explain", "maybe"], "--explain must be true or false, not 'maybe'."),
        (["--model", "a/b", "--root_path", "vision"], "--root_path must be a path such as /vision"),
        (["--model", "a/b", "--allowed_hosts", "http://x"], "--allowed_hosts has 'http://x'"),
        (["--model", "a/b", "--cors_origins", "shop.example"], "--cors_origins has 'shop.example'"),
        (["--model", "a/b", "--allowed_hosts", ","], "--allowed_hosts has no name"),
        (["--model", "a/b", "--cors_origins", " , "], "--cors_origins has no name"),
        (
            ["--model", "a/b", "--max_image_mib", "200", "--max_request_mib", "200"],
            "takes 800 MiB while it is parsed, more than --max_bodies_mib 256",
        ),
    ],
)
def test_a_wrong_setting_ends_with_2_and_one_line(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *argv]) == 2
    written = capsys.readouterr()
    assert sentence in written.err
    assert written.err.count("\n") == 1
    assert written.out == ""


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--modle", "a/b"], "There is no option --modle. Did you mean --model?"),
        (["--max_bach=4"], "Did you mean --max_batch?"),
        (["stray"], "'stray' is one word too many."),
    ],
)
def test_a_mistyped_option_gets_a_suggestion(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *argv]) == 2
    written = capsys.readouterr().err
    assert sentence in written
    assert written.count("\n") == 1


def test_without_a_model_it_is_the_release_that_the_library_classifies_with() -> None:
    assert read_settings([], {"ECA_MODEL": ""}).model == (DEFAULT_RELEASE,)


@pytest.mark.parametrize("values", [{"model": ()}, {"model": ("a/b",), "watch": 1}, {"model": ("a/b",), "port": -1}])
def test_settings_made_in_python_are_checked_as_well(values: dict[str, Any]) -> None:
    with pytest.raises(BadSetting):
        Settings(**values)


def test_zero_is_zero() -> None:
    settings = read_settings(["--model", "a/b", "--keep_alive_s", "0", "--drain_timeout_s", "0"], {})
    assert (settings.keep_alive_s, settings.drain_timeout_s) == (0, 0)


def test_mistakes_and_help_need_no_torch() -> None:
    code = (
        "import sys; from eca_hub.__main__ import main\n"
        "assert main(['serve', '--port', 'x']) == 2\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit as ending: assert ending.code == 0\n"
        "import eca_service.app, eca_service.http.server, eca_service.models.loader\n"
        "assert not {'torch', 'PIL', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_old_and_the_new_name_of_a_setting_together_are_refused() -> None:
    for argv, environment, names in (
        (["--revision_poll_s", "10", "--watch", "5"], {}, "--watch and --revision_poll_s"),
        ([], {"ECA_WATCH": "5", "ECA_REVISION_POLL_S": "10"}, "ECA_WATCH and ECA_REVISION_POLL_S"),
    ):
        with pytest.raises(BadSetting, match=f"^{names} are given, which are one setting"):
            read_settings(["--model", "a/b", *argv], environment)
    assert read_settings(["--model", "a/b", "--revision_poll_s", "10"], {"ECA_WATCH": "5"}).revision_poll_s == 10


@pytest.mark.parametrize("pattern", ["acme", "https://huggingface.co/acme/x", "acme/x/y", "acme/", "/x", "acme/x@v1"])
def test_an_allowed_repository_that_cannot_be_is_refused(pattern: str) -> None:
    with pytest.raises(BadSetting, match="matches no repository"):
        Settings(allow_repos=f"acme/*, {pattern}")
    assert Settings(allow_repos="*, acme/*, acme*, */eca_?, acme/x").repos_to_allow


def test_an_origin_is_compared_as_browsers_write_it() -> None:
    origins = (
        "https://Shop.Example, https://b.example:443, http://c.example:80, http://d.example:443, https://[::1]:443,*"
    )
    assert Settings(cors_origins=origins).allowed_origins == (
        "https://shop.example",
        "https://b.example",
        "http://c.example",
        "http://d.example:443",
        "https://[::1]",
        "*",
    )


@pytest.mark.parametrize(
    ("model", "admin_keys", "warned"),
    [
        ("acme/digits", (), ["--allow_repos"]),
        (f"acme/digits@{'a' * 40}", (), ["--allow_repos", "--revision_poll_s"]),
        (f"acme/digits@{'a' * 40}", ("secret",), []),
    ],
)
def test_a_setting_that_does_nothing_here_is_named_in_the_log(
    model: str, admin_keys: tuple[str, ...], warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    app_with(model, admin_keys=admin_keys, allow_repos="acme/*", revision_poll_s=60)
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == warned
