"""Fetching through the unmodified client from a real local hub: by any revision, whole, checked, and from a cache."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from eca_hub.errors import (
    ChecksumMismatch,
    HubUnavailable,
    InvalidConfig,
    InvalidPackage,
    RepoNotFound,
    RevisionNotFound,
)
from eca_hub.hub.card.edit import set_model_id
from eca_hub.hub.convert.checkpoint_reader import read_weights
from eca_hub.hub.package import FILES, find_package
from eca_hub.hub.pull import NO_HASH, check_cache, is_local, pull, pull_to
from eca_hub.hub.push import PushResult, push_folder
from tests.localhub.hub_process import Hub


def test_a_private_repository_is_seen_with_its_token_only(
    hub: Hub, push: Callable[..., PushResult], model_id: str
) -> None:
    push(private=True)
    with pytest.raises(RepoNotFound, match=r"private\. If it is private, set HF_TOKEN; if you mean a folder"):
        pull(model_id, endpoint=hub.url)
    assert pull(model_id, endpoint=hub.url, token=hub.token).model_id == model_id


@pytest.mark.parametrize("revision", ["../../main", "a..b", "/main", "", "a b", "x" * 300])
def test_a_malformed_revision_is_refused(revision: str) -> None:
    with pytest.raises(InvalidConfig, match="cannot be a revision"):
        pull("acme/x", revision, endpoint="http://127.0.0.1:9")


def test_each_missing_thing_has_its_own_error(hub: Hub, push: Callable[..., PushResult], model_id: str) -> None:
    with pytest.raises(RepoNotFound, match=r"There is no repository 'acme/nothing' on the hub"):
        pull("acme/nothing", endpoint=hub.url, token=hub.token)
    push()
    with pytest.raises(RevisionNotFound, match="has no branch, tag or commit 'v9'"):
        pull(model_id, "v9", endpoint=hub.url)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.delete_file("model.safetensors", model_id)
    with pytest.raises(InvalidPackage, match=r"has no model\.safetensors; a package needs"):
        pull(model_id, endpoint=hub.url)


def test_a_pickle_beside_no_safetensors_is_never_fetched(hub: Hub, model_id: str, cache: Path) -> None:
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(model_id)
    for name, content in {"config.json": b"{}", "pytorch_model.bin": b"canary"}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=model_id)
    with pytest.raises(InvalidPackage):
        pull(model_id, endpoint=hub.url)
    assert not any(path.name == "pytorch_model.bin" for path in cache.rglob("*"))


def blob_of(cache: Path, name: str) -> Path:
    [link] = cache.rglob(f"snapshots/*/{name}")
    return link.resolve()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1])]
)
def test_a_file_that_is_damaged_in_the_cache_is_fetched_again(
    hub: Hub,
    push: Callable[..., PushResult],
    package: Path,
    model_id: str,
    cache: Path,
    damage: Callable[[bytes], bytes],
) -> None:
    push()
    pull(model_id, endpoint=hub.url)
    blob = blob_of(cache, "model.safetensors")
    blob.write_bytes(damage(blob.read_bytes()))
    assert [each.is_intact for each in check_cache(model_id) if each.path == blob] == [False]
    assert pull(model_id, endpoint=hub.url).weights_bytes == (package / "model.safetensors").read_bytes()
    assert all(each.is_intact for each in check_cache())


def test_a_damaged_file_is_refused_when_the_hub_is_away(
    hub: Hub, push: Callable[..., PushResult], model_id: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = push()
    pull(model_id, endpoint=hub.url)
    blob = blob_of(cache, "model.safetensors")
    blob.write_bytes(blob.read_bytes()[:-1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ChecksumMismatch, match="damaged in the cache, and the hub does not respond"):
        pull(model_id, published.revision, endpoint=hub.url)


def test_a_warm_cache_works_without_the_hub_by_branch_tag_and_commit(
    hub: Hub, push: Callable[..., PushResult], model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = push(tag="v1")
    for revision in (None, "main", "v1"):
        pull(model_id, revision, endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", "v1", published.revision):
        assert pull(model_id, revision, endpoint=hub.url).revision == published.revision
    with pytest.raises(HubUnavailable, match="the cache does not hold acme/other"):
        pull("acme/other", endpoint=hub.url)


@pytest.mark.parametrize("ref", ["../../../x", "garbage", ""])
def test_a_damaged_ref_in_the_cache_is_named_and_replaced_when_the_hub_responds(
    ref: str,
    hub: Hub,
    push: Callable[..., PushResult],
    model_id: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = push()
    pull(model_id, endpoint=hub.url)
    [path] = cache.rglob("refs/main")
    path.write_text(ref)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubUnavailable, match=r"The cache is damaged: .*refs/main holds no commit"):
            pull(model_id, endpoint=hub.url)
    assert pull(model_id, endpoint=hub.url).revision == published.revision
    assert path.read_text() == published.revision


@pytest.mark.parametrize("tag", ["v1.0+cu118", "_x", "a@b", "a=b"])
def test_a_tag_of_every_name_that_the_hub_accepts_is_published_and_pulled(
    tag: str, hub: Hub, push: Callable[..., PushResult], model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = push(tag=tag)
    assert pull(f"{model_id}@{tag}", endpoint=hub.url).revision == published.revision
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(model_id, tag, endpoint=hub.url).revision == published.revision


def test_a_repository_whose_owner_begins_with_an_underscore_is_published_and_pulled(hub: Hub, package: Path) -> None:
    published = push_folder(package, "_acme/_model", endpoint=hub.url, token=hub.token)
    assert pull("_acme/_model", endpoint=hub.url).revision == published.revision


def test_a_repository_of_another_program_is_refused_before_its_weights_are_downloaded(
    hub: Hub, model_id: str, cache: Path, tmp_path: Path
) -> None:
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(model_id)
    for name, content in {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights"}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=model_id)
    with pytest.raises(InvalidPackage, match=rf"config\.json of {model_id} is neither eca-hub's"):
        pull(model_id, endpoint=hub.url)
    with pytest.raises(InvalidPackage, match="is neither eca-hub's"):
        pull_to(model_id, tmp_path / "copy", endpoint=hub.url)
    assert not (tmp_path / "copy").exists()
    assert not any(cache.rglob("model.safetensors"))


def test_a_folder_gets_a_complete_package_or_nothing(
    hub: Hub, push: Callable[..., PushResult], model_id: str, package: Path, tmp_path: Path
) -> None:
    published = push()
    target = tmp_path / "new" / "copy"
    assert pull_to(model_id, target, endpoint=hub.url) == published.revision
    published_bytes = {name: (package / name).read_bytes() for name in FILES}
    published_bytes["README.md"] = set_model_id(published_bytes["README.md"], model_id)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == published_bytes
    with pytest.raises(InvalidConfig, match="not empty"):
        pull_to(model_id, target, endpoint=hub.url)


def test_a_copy_without_the_hub_has_what_the_cache_has(
    hub: Hub, push: Callable[..., PushResult], model_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = push()
    pull(model_id, endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull_to(model_id, tmp_path / "copy", endpoint=hub.url) == published.revision
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]


def test_a_cache_without_symbolic_links_works_without_the_hub(
    hub: Hub, push: Callable[..., PushResult], model_id: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    published = push()
    pull(model_id, endpoint=hub.url)
    assert not any(path.is_symlink() for path in cache.rglob("*"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(model_id, endpoint=hub.url).revision == published.revision
    [weights] = cache.rglob("snapshots/*/model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ChecksumMismatch, match="damaged in the cache"):
        pull(model_id, endpoint=hub.url)
    weights.write_bytes(content)
    [record] = cache.rglob("hashes/*/model.safetensors")
    record.unlink()
    with pytest.raises(HubUnavailable, match=r"has no symbolic links, has no hash of model\.safetensors"):
        pull(model_id, endpoint=hub.url)


def test_a_damaged_file_of_a_cache_without_symbolic_links_is_found_and_fetched_again(
    hub: Hub,
    push: Callable[..., PushResult],
    package: Path,
    model_id: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    push()
    pull(model_id, endpoint=hub.url)
    [weights] = cache.rglob("snapshots/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert {each.path.name: each.is_intact for each in check_cache()} == {
        "config.json": True,
        "model.safetensors": False,
    }
    assert pull(model_id, endpoint=hub.url).weights_bytes == (package / "model.safetensors").read_bytes()
    assert all(each.is_intact for each in check_cache())


def test_a_regular_file_in_place_of_a_link_of_the_cache_is_found_and_replaced(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, cache: Path
) -> None:
    push()
    pull(model_id, endpoint=hub.url)
    [link] = cache.rglob("snapshots/*/config.json")
    # As an editor that writes a new file and renames it.
    edited = link.with_name("new")
    edited.write_bytes(link.read_bytes().replace(b"cat", b"dog"))
    edited.rename(link)
    assert {each.path: (each.is_intact, each.reason) for each in check_cache()}[link] == (None, NO_HASH)
    assert pull(model_id, endpoint=hub.url).config_bytes == (package / "config.json").read_bytes()
    assert link.is_symlink()


def test_an_endpoint_of_another_type_is_named(package: Path) -> None:
    for call in (pull, partial(push_folder, package)):
        with pytest.raises(InvalidConfig, match="endpoint is 5; it must be the address of a hub"):
            call("acme/x", endpoint=5)  # type: ignore[arg-type]


def test_a_folder_that_may_not_be_searched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    monkeypatch.setattr(Path, "is_file", refuse)
    for call in (is_local, find_package, read_weights):
        with pytest.raises(InvalidPackage, match="secret/model cannot be read: Permission denied"):
            call("secret/model")


def test_the_verify_command_names_and_removes_what_is_damaged(
    hub: Hub, push: Callable[..., PushResult], model_id: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eca_hub.__main__ import main

    push()
    pull(model_id, endpoint=hub.url)
    assert main(["verify"]) == 0
    assert "2 files" in capsys.readouterr().out
    blob = blob_of(cache, "config.json")
    blob.write_bytes(b"{}")
    assert main(["verify", model_id, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["damaged"] == [{"model_id": model_id, "path": str(blob)}]
    assert main(["verify", "--repair"]) == 0
    assert not blob.exists()
    assert main(["verify"]) == 0


def test_the_verify_command_leaves_files_of_other_programs_alone(
    hub: Hub, push: Callable[..., PushResult], model_id: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eca_hub.__main__ import main

    push()
    pull(model_id, endpoint=hub.url)
    foreign = blob_of(cache, "config.json").with_name(".DS_Store")
    foreign.write_bytes(b"x")
    (foreign.parents[2] / "models--acme--strange").mkdir()
    (foreign.parents[2] / "models--acme--strange" / "blobs").write_bytes(b"x")
    assert main(["verify", "--repair"]) == 0
    assert "2 files" in capsys.readouterr().out
    assert foreign.exists()


def test_the_verify_command_says_that_a_model_is_not_in_the_cache(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eca_hub.__main__ import main

    assert main(["verify", "acme/mistyped"]) == 2
    assert "The cache has no files of acme/mistyped" in capsys.readouterr().err
    # What the client notes of a repository without a package.
    for name in ("refs/main", f".no_exist/{'a' * 40}/config.json"):
        note = cache / "models--acme--empty" / name
        note.parent.mkdir(parents=True)
        note.write_text("a" * 40)
    assert main(["verify", "acme/empty"]) == 2
    assert "The cache has no files of acme/empty" in capsys.readouterr().err
    assert main(["verify"]) == 0


def test_the_verify_command_counts_what_it_could_not_check(
    hub: Hub, push: Callable[..., PushResult], model_id: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eca_hub.__main__ import main

    push()
    pull(model_id, endpoint=hub.url)
    [link] = cache.rglob("snapshots/*/config.json")
    link.with_name("notes.txt").write_text("mine")
    assert main(["verify"]) == 0
    output = capsys.readouterr().out
    assert f"not checked: {model_id}  {link.with_name('notes.txt')}  (no hash is recorded)" in output
    assert "3 files" in output
    assert "0 damaged, 1 not checked" in output
    assert main(["verify", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["checked"], len(document["not_checked"])) == (2, 1)


def test_the_verify_command_names_folders_that_it_may_not_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eca_hub.__main__ import main

    folder = cache / "models--acme--x"
    (folder / "blobs").mkdir(parents=True)
    secret = cache

    def guard(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: str | Path, **options: Any) -> Any:
            if Path(path) == secret or secret in Path(path).parents:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, **options)

        return refuse

    for owner, name in ((Path, "iterdir"), (Path, "stat"), (os, "scandir")):
        monkeypatch.setattr(owner, name, guard(getattr(owner, name)))
    assert main(["verify"]) == 1
    assert f"not checked:  {cache}  (Permission denied)" in capsys.readouterr().out
    for hidden, command in ((cache, ["verify", "acme/x"]), (folder, ["verify", "acme/x"]), (folder, ["verify"])):
        secret = hidden
        assert main(command) == 1
        output = capsys.readouterr().out
        assert output.count("not checked: ") == 1
        assert f"not checked: acme/x  {folder}  (Permission denied)" in output
    secret = folder / "blobs"
    assert main(["verify"]) == 1
    assert f"not checked: acme/x  {secret}  (Permission denied)" in capsys.readouterr().out


def test_the_verify_command_names_files_that_it_may_not_read_or_remove(
    hub: Hub,
    push: Callable[..., PushResult],
    model_id: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from eca_hub.__main__ import main

    push()
    pull(model_id, endpoint=hub.url)
    secret, damaged = blob_of(cache, "config.json"), blob_of(cache, "model.safetensors")
    damaged.write_bytes(b"")
    open_file = Path.open

    def refuse_to_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *args, **kwargs)

    def refuse_to_remove(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse_to_open)
    monkeypatch.setattr(Path, "unlink", refuse_to_remove)
    assert main(["verify", "--repair"]) == 1
    output = capsys.readouterr().out
    assert f"not checked: {model_id}  {secret}  (Permission denied)" in output
    assert f"damaged: {model_id}  {damaged}  (not removed: Permission denied)" in output
    monkeypatch.undo()
    assert damaged.exists()
