"""`eca-hub classify`: folders, standard input, files of results that are continued."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from eca_hub.__main__ import main as eca_hub
from eca_hub.commands.classify import main
from eca_hub.errors import InvalidConfig, InvalidUsage
from tests.conftest import make_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.png", "sub/a.JPG", ".hidden/c.png", "__MACOSX/d.png", "._e.png", "@eaDir/f.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_image())
    (folder / "sub" / "up").symlink_to(folder)
    return folder


def test_a_folder_gives_a_line_for_each_image_below_it(
    tiny_package: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(photos), "--model", str(tiny_package)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [str(photos / "b.png"), str(photos / "sub" / "a.JPG")]


def test_files_of_a_folder_that_are_not_decoded_are_named_and_those_without_an_ending_are_tried(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "photo").write_bytes(make_image())
    (tmp_path / "table").write_bytes(b"no image")
    assert main([str(tmp_path), "--model", str(tiny_package)]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(str(tmp_path / "photo  "))
    assert second.startswith(f"{tmp_path / 'photo.heic'}: The file is a HEIC, which is not supported.")


def test_patterns_tildes_and_file_urls_name_images(
    tiny_package: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(photos))
    for given in (str(photos / "*.png"), "~/b.png", (photos / "b.png").as_uri()):
        assert main([given, "--model", str(tiny_package)]) == 0
        [line] = capsys.readouterr().out.splitlines()
        assert line.startswith(str(photos / "b.png"))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "absent.png", "absent*.png"])
def test_a_name_that_no_file_can_have_is_an_error_of_that_image(
    name: str, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--model", str(tiny_package)]) == 2
    assert "cannot be read: " in capsys.readouterr().out


def test_an_image_is_read_from_standard_input(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(make_image())))
    assert main(["-", "--model", str(tiny_package), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 3


@pytest.mark.parametrize("options", [[], ["--json"], ["--output", "{folder}/results.csv"]])
def test_a_network_without_finite_scores_ends_the_command_with_a_sentence(
    options: list[str], damaged_package: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [option.format(folder=tmp_path) for option in options]
    assert eca_hub(["classify", str(photos), "--model", str(damaged_package), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith(f"eca-hub classify: The network of {damaged_package} gives no finite scores for this image")


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_file_of_results_is_continued_after_its_last_complete_line(
    name: str, tiny_package: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / name
    (photos / "bad.png").write_bytes(b"nothing")
    command = [str(photos), "--model", str(tiny_package), "--batch_size", "2", "--output", str(output)]
    assert main(command) == 2
    complete = output.read_bytes()
    images = (
        [row["image"] for row in csv.DictReader(io.StringIO(complete.decode()))]
        if name.endswith(".csv")
        else [json.loads(line)["image"] for line in complete.splitlines()]
    )
    assert images == [str(photos / each) for each in ("b.png", "bad.png", "sub/a.JPG")]
    output.write_bytes(complete[:-20])
    assert main(command) == 2
    assert output.read_bytes() == complete
    assert capsys.readouterr().out.endswith(
        f"1 images classified, 2 were there already, 1 of them bad; written to {output}\n"
    )


def test_a_file_of_results_that_a_spreadsheet_has_saved_is_continued(
    tiny_package: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.csv"
    command = ["--model", str(tiny_package), "--output", str(output)]
    assert main([str(photos / "b.png"), *command]) == 0
    saved = "\ufeff".encode() + output.read_bytes()
    output.write_bytes(saved)
    assert main([str(photos), *command]) == 0
    assert output.read_bytes().startswith(saved)
    with output.open(encoding="utf-8-sig", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(photos / "b.png"), str(photos / "sub" / "a.JPG")]
    assert "1 images classified, 1 were there already" in capsys.readouterr().out


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_file_of_results_with_another_separator_is_refused_by_its_name_and_left_as_it_is(
    separator: str, name: str, tiny_package: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results.csv"
    command = [str(photos), "--model", str(tiny_package), "--output", str(output)]
    assert main(command) == 0
    saved = output.read_bytes().replace(b",", separator.encode()).rstrip(b"\r\n")
    output.write_bytes(saved)
    with pytest.raises(InvalidUsage, match=f"has {name} between its columns.* Save it with commas"):
        main(command)
    assert output.read_bytes() == saved


def test_a_file_of_another_model_is_not_continued(tiny_package: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.csv"
    output.write_text("image,label_1,score_1,error,revision\r\na.png,cat,1.0,,0000\r\n")
    before = output.read_bytes()
    with pytest.raises(InvalidUsage, match="results of another revision"):
        main([str(photos), "--model", str(tiny_package), "--top_k", "1", "--output", str(output)])
    assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
@pytest.mark.parametrize("options", [["--top_k", "1"], ["--min_score", "0.9"]])
def test_a_file_of_other_options_is_not_continued(
    name: str, options: list[str], tiny_package: Path, photos: Path, tmp_path: Path
) -> None:
    command = [str(photos), "--model", str(tiny_package), "--output", str(tmp_path / name)]
    assert main([*command, *options]) == 0
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InvalidUsage, match=r"Give a new file as --output\."):
        main(command)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(("1", "0.3"), ("3", "0.3")), (("3", "0.3"), ("3", "0.2")), (("3", "0.2"), ("3", "0.3"))],
)
def test_a_file_whose_left_out_scores_may_belong_to_these_options_is_not_continued(
    name: str, before: tuple[str, str], after: tuple[str, str], tiny_package: Path, photos: Path, tmp_path: Path
) -> None:
    def classify(top_k: str, min_score: str) -> int:
        options = ["--top_k", top_k, "--min_score", min_score, "--output", str(tmp_path / name)]
        return main([str(photos), "--model", str(tiny_package), *options])

    assert classify(*before) == 0
    written = (tmp_path / name).read_bytes()
    assert classify(*before) == 0
    with pytest.raises(InvalidUsage, match=r"Give a new file as --output\."):
        classify(*after)
    assert (tmp_path / name).read_bytes() == written


def test_a_file_of_results_with_an_image_that_is_not_text_is_refused(tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"image": 3, "revision": "0", "predictions": []}\n')
    with pytest.raises(InvalidUsage, match="has other columns"):
        main(["x.png", "--model", str(tiny_package), "--output", str(tmp_path / "x.jsonl")])


def test_a_file_of_results_in_the_home_folder_is_written_there(
    tiny_package: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([str(photos), "--model", str(tiny_package), "--output", "~/results.csv"]) == 0
    assert (tmp_path / "results.csv").is_file()


class EndlessFile(io.RawIOBase):
    """Standard input without an end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert len(buffer) <= 10 * 2**20 + 1
        return len(buffer)


def test_no_more_of_standard_input_is_read_than_an_image_may_have(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(EndlessFile())))
    assert main(["-", "--model", str(tiny_package)]) == 2
    assert "the limit is 10 MiB" in capsys.readouterr().out


def test_standard_input_that_cannot_be_read_is_an_error_of_that_image(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(EndlessFile):
        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    for options in ([], ["--output", str(tmp_path / "x.csv")]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken())))
        assert main(["-", "--model", str(tiny_package), *options]) == 2
    assert "Standard input cannot be read: Input/output error." in capsys.readouterr().out
    assert "Standard input cannot be read" in (tmp_path / "x.csv").read_text()


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_each_image_of_standard_input_is_added_to_a_file_of_results(
    name: str, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_images in (1, 2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(make_image())))
        assert main(["-", "--model", str(tiny_package), "--output", str(tmp_path / name)]) == 0
        lines = (tmp_path / name).read_text().splitlines()
        assert len([line for line in lines if "revision" not in line or line.startswith("{")]) == num_images


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text")
@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_name_that_is_not_utf8_is_escaped_and_found_again(
    name: str, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, output = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / os.fsdecode(b"\xe9" + name.encode())
    image.write_bytes(make_image())
    command = [str(image), "--model", str(tiny_package)]
    assert main([*command, "--output", str(output)]) == 0
    complete = output.read_bytes()
    assert rb"caf\udce9.png" in complete
    assert main([*command, "--output", str(output)]) == 0
    assert output.read_bytes() == complete
    assert main(command) == 0
    assert r"caf\udce9.png" in capsys.readouterr().out


def test_a_file_has_no_more_columns_than_the_model_has_classes(
    tiny_package: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results.csv"
    for _ in range(2):
        assert main([str(photos), "--model", str(tiny_package), "--top_k", "200000", "--output", str(output)]) == 0
    assert len(output.read_text().partition("\n")[0]) < 1000


def test_a_file_whose_name_begins_with_a_tilde_is_no_user(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~nosuchuser.png").write_bytes(make_image())
    assert main(["~nosuchuser.png", "--model", str(tiny_package)]) == 0
    assert capsys.readouterr().out.startswith("~nosuchuser.png  ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["file://[abc"], r"file://\[abc names no file on this machine\. Give file:///PATH"),
        (["file://"], "file:// names no file on this machine"),
        (["file://photos/cat.png"], "names no file on this machine"),
        (["x.png", "--output", "nosuch/x.csv"], "There is no folder .*nosuch"),
        (["x.png", "--output", "x.jsonl", "--json"], "give one of them"),
        (["x.png", "--output="], "--output is empty"),
        (["x.png", "--output", "x" * 300 + ".csv"], "cannot be written: File name too long"),
        (["https://example.org/cat.jpg"], "eca-hub does not download images"),
        (["x.png", "--top_k", "0"], "--top_k is 0"),
        (["x.png", "--output", "results.xlsx"], r"must end in \.csv or \.jsonl"),
        (["{empty}"], "has no images"),
        (["s3://bucket/cat.jpg"], r"eca-hub does not download images\. Give a file\."),
        (["data:image/png;base64,AAAA"], "eca-hub does not download images"),
        ([""], "The name of an image is empty"),
    ],
)
def test_mistakes_are_refused_before_a_model_is_loaded(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidUsage, match=message):
        main([option.format(empty=tmp_path) for option in options] + ["--model", "acme/absent"])


def test_a_device_that_does_not_exist_is_refused(tiny_package: Path) -> None:
    with pytest.raises(InvalidConfig, match="device 'nonsense' cannot be used: torch has no such device"):
        main(["x.png", "--model", str(tiny_package), "--device", "nonsense"])
