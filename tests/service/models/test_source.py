"""What a value of `--model` means."""

import asyncio
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from eca_hub.errors import HubError
from eca_service.errors import BadSetting
from eca_service.models.loader import ModelLoader
from eca_service.models.source import ModelSource, check_ids
from eca_service.settings import Settings
from tests.service.server_process import save_tiny_package


def test_a_source_is_a_name_a_name_with_a_revision_or_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs@home"
    folder.mkdir()
    assert ModelSource.parse("acme/a") == ModelSource("acme/a", None)
    assert ModelSource.parse("acme/a@v1") == ModelSource("acme/a", "v1")
    assert ModelSource.parse(str(folder)) == ModelSource(str(folder), None, "runs@home")


@pytest.mark.parametrize(
    ("text", "public_id"),
    [
        ("pkg", "pkg"),
        ("acme/pkg", "acme/pkg"),
        ("./pkg", "pkg"),
        ("{absolute}/acme/pkg", "pkg"),
        ("acme/cats={absolute}/acme/pkg", "acme/cats"),
        ("cats=pkg", "cats"),
        ("acme/none@v1", "acme/none"),
    ],
)
def test_clients_see_the_id_of_a_folder_and_not_its_path(
    text: str, public_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("pkg", "acme/pkg"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelSource.parse(text.format(absolute=tmp_path)).public_id == public_id


@pytest.mark.parametrize("text", ["a/b=absent", "../cats={folder}", "a/b/c={folder}", "={folder}", "a b={folder}"])
def test_an_id_for_a_folder_must_be_valid_and_the_folder_exist(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="--model owner/name=FOLDER"):
        ModelSource.parse(text.format(folder=tmp_path))


@pytest.mark.parametrize("text", ["x" * 300, "cats=" + "x" * 300])
def test_a_path_that_the_system_refuses_is_one_sentence(text: str) -> None:
    with pytest.raises(BadSetting, match=r"--model '.*x' cannot be reached: File name too long\."):
        ModelSource.parse(text)


def test_two_folders_with_one_id_are_refused() -> None:
    with pytest.raises(BadSetting, match="id pkg"):
        check_ids([ModelSource("/a/pkg", folder_id="pkg"), ModelSource("/b/pkg", folder_id="pkg")])
    check_ids([ModelSource("acme/a", "v1"), ModelSource("acme/a", "v2")])


def test_a_repository_without_a_revision_is_the_one_at_main() -> None:
    with pytest.raises(BadSetting, match="Two models are acme/a@main"):
        check_ids([ModelSource.parse("acme/a"), ModelSource.parse("acme/a@main")])


@pytest.mark.parametrize("name", [b"cats\xff", b"cats\n", b"cats\x1b[2J", "cats\u2028".encode()])
def test_an_id_that_metrics_and_urls_cannot_carry_is_refused_and_the_folder_can_be_named(
    name: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    for text in (str(folder), f"acme/{os.fsdecode(name)}", f"acme/a@{os.fsdecode(name)}"):
        with pytest.raises(BadSetting, match="--model owner/name=FOLDER") as refused:
            ModelSource.parse(text)
        assert str(refused.value).isprintable()
    assert ModelSource.parse(f"acme/cats={folder}").public_id == "acme/cats"


@pytest.mark.parametrize("text", ["", "/", "@v1"])
def test_an_empty_id_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="gives no valid id"):
        ModelSource.parse(text)


def test_a_repository_is_not_taken_for_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_package(tmp_path / "acme" / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    async def load(source: ModelSource) -> str:
        loader = ModelLoader(Settings(model=("acme/digits",)))
        try:
            model = await loader.open(source)
            await model.close()
        finally:
            loader.close()
        return model.model_id

    # What /v1/models makes of its body, and what --model makes of its value.
    with pytest.raises(HubError):
        asyncio.run(load(ModelSource("acme/digits")))
    assert asyncio.run(load(ModelSource.parse("acme/digits"))) == "acme/digits"
