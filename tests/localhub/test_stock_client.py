"""The unmodified huggingface_hub client against a hub process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.localhub.conftest import ALICE, BOB
from tests.localhub.hub_process import Hub

PUSH_AND_PULL = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi, constants
url, token, repo_id, weights, folder = sys.argv[1:]
api = HfApi(endpoint=url, token=token)
operations = lambda: [CommitOperationAdd("model.safetensors", weights), CommitOperationAdd("config.json", b"{}")]
first = api.create_commit(repo_id, operations(), commit_message="one")
second = api.create_commit(repo_id, operations(), commit_message="two")
path = api.hf_hub_download(repo_id, "model.safetensors", cache_dir=folder)
print(json.dumps({"xet": not constants.HF_HUB_DISABLE_XET, "first": first.oid, "second": second.oid, "path": path}))
"""

VALIDATE = """
import json, sys
from huggingface_hub import ModelCard
def validate(card):
    try:
        ModelCard(card).validate()
    except ValueError as error:
        return str(error)
    return "valid"
print(json.dumps([validate(card) for card in sys.argv[1:]]))
"""


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=ALICE)


@pytest.mark.parametrize("disable_xet", ["0", "1"])
def test_weights_are_the_same_after_push_and_pull_with_xet_and_without(
    hub: Hub, repo_id: str, weights: Path, tmp_path: Path, disable_xet: str
) -> None:
    environment = os.environ | {"HF_HUB_DISABLE_XET": disable_xet}
    command = [sys.executable, "-c", PUSH_AND_PULL, hub.url, ALICE, repo_id, str(weights), str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    response = json.loads(done.stdout)
    assert response["xet"] == (disable_xet == "0")
    assert Path(response["path"]).read_bytes() == weights.read_bytes()
    assert Path(response["path"]).resolve().name == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_second_push_of_the_same_bytes_is_a_no_op(api: HfApi, repo_id: str, weights: Path) -> None:
    operations = [CommitOperationAdd("a/model.safetensors", weights), CommitOperationAdd("config.json", b"{}")]
    first = api.create_commit(repo_id, operations, commit_message="one")
    again = [CommitOperationAdd("a/model.safetensors", weights), CommitOperationAdd("config.json", b"{}")]
    second = api.create_commit(repo_id, again, commit_message="two")
    assert first.oid == second.oid
    assert [commit.title for commit in api.list_repo_commits(repo_id)] == ["one", "initial commit"]


def test_the_same_bytes_in_another_repository_after_xet_has_recorded_them(
    api: HfApi, repo_id: str, weights: Path
) -> None:
    api.create_commit(repo_id, [CommitOperationAdd("model.safetensors", weights)], commit_message="one")
    other = str(api.create_repo(f"{repo_id}-other").repo_id)
    api.create_commit(other, [CommitOperationAdd("model.safetensors", weights)], commit_message="one")
    assert api.get_paths_info(other, "model.safetensors")[0].lfs is not None  # type: ignore[union-attr]


def test_an_open_file_and_a_folder_are_uploaded(api: HfApi, repo_id: str, weights: Path) -> None:
    with weights.open("rb") as file:
        api.upload_file(path_or_fileobj=file, path_in_repo="open.bin", repo_id=repo_id)
    (weights.parent / "config.json").write_text('{"architecture": "eca_resnet18"}')
    api.upload_folder(folder_path=weights.parent, repo_id=repo_id)
    assert set(api.list_repo_files(repo_id)) == {".gitattributes", "config.json", "model.safetensors", "open.bin"}
    assert api.model_info(repo_id).config == {"architecture": "eca_resnet18"}


def test_copy_delete_and_folders_in_one_commit(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    adds = [CommitOperationAdd(f"{folder}/{name}", b"x") for folder in "ab" for name in ("x.txt", "y.bin")]
    api.create_commit(repo_id, adds, commit_message="files")
    changes: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        CommitOperationDelete("a/"),
        CommitOperationDelete("b/x.txt"),
        CommitOperationCopy("b/y.bin", "c/copy.bin"),
        CommitOperationCopy("b/x.txt", "c/copy.txt"),
    ]
    api.create_commit(repo_id, changes, commit_message="moved")
    assert sorted(api.list_repo_files(repo_id)) == [".gitattributes", "b/y.bin", "c/copy.bin", "c/copy.txt"]
    tree = {entry.path for entry in api.list_repo_tree(repo_id, "c")}
    assert tree == {"c/copy.bin", "c/copy.txt"}
    last = {entry.path: entry.last_commit.title for entry in api.list_repo_tree(repo_id, expand=True, recursive=True)}  # type: ignore[union-attr]
    assert (last["c"], last["c/copy.txt"], last[".gitattributes"]) == ("moved", "moved", "initial commit")


def test_branches_tags_and_commit_ids_all_lead_to_their_commit(api: HfApi, repo_id: str) -> None:
    first = api.create_commit(repo_id, [CommitOperationAdd("f.txt", b"1")], commit_message="one").oid
    api.create_branch(repo_id, branch="feature/x")
    api.create_tag(repo_id, tag="v1")
    second = api.create_commit(
        repo_id, [CommitOperationAdd("f.txt", b"2")], commit_message="two", revision="feature/x"
    ).oid
    shas = {name: api.model_info(repo_id, revision=name).sha for name in ("main", "feature/x", "v1", second[:8])}
    assert shas == {"main": first, "feature/x": second, "v1": first, second[:8]: second}
    refs = api.list_repo_refs(repo_id)
    assert {ref.name for ref in refs.branches} == {"main", "feature/x"}
    assert [ref.name for ref in refs.tags] == ["v1"]
    with pytest.raises(HfHubHTTPError, match="Invalid reference"):
        api.create_branch(repo_id, branch=first)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo_id, revision="nowhere")


def test_a_commit_on_an_old_parent_is_refused(api: HfApi, repo_id: str) -> None:
    parent = api.model_info(repo_id).sha
    api.create_commit(repo_id, [CommitOperationAdd("a.txt", b"1")], commit_message="one", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="The branch was updated") as caught:
        api.create_commit(repo_id, [CommitOperationAdd("b.txt", b"1")], commit_message="two", parent_commit=parent)
    assert caught.value.response.status_code == 412


def test_models_are_found_by_author_word_tag_and_page(api: HfApi, hub: Hub) -> None:
    card = "---\nlicense: mit\nlibrary_name: eca-hub\ntags: [channel-attention]\n---\n# Card\n"
    for number in range(5):
        name = str(api.create_repo(f"acme/listed-{number}").repo_id)
        api.create_commit(name, [CommitOperationAdd("README.md", card.encode())], commit_message="card")
    found = [model.id for model in api.list_models(search="listed", filter=["eca-hub", "license:mit"], author="acme")]
    assert sorted(found) == [f"acme/listed-{number}" for number in range(5)]
    assert len(list(api.list_models(search="listed", limit=2))) == 2
    assert list(api.list_models(filter="no-such-tag")) == []
    assert list(api.list_models(author="missing")) == []
    assert api.model_info("acme/listed-0").card_data.license == "mit"  # type: ignore[union-attr]


def test_private_repositories_are_hidden_from_all_but_their_owner(api: HfApi, hub: Hub) -> None:
    name = str(api.create_repo("alice/secret", private=True).repo_id)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="f.txt", repo_id=name)
    for token in (BOB, False):
        other = HfApi(endpoint=hub.url, token=token)
        with pytest.raises(RepositoryNotFoundError):
            other.model_info(name)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "f.txt", endpoint=hub.url, token=token)
        assert name not in [model.id for model in other.list_models()]
    api.update_repo_settings(name, private=False)
    assert HfApi(endpoint=hub.url, token=False).model_info(name).private is False


def test_gated_files_are_refused_to_other_users(api: HfApi, hub: Hub, repo_id: str) -> None:
    api.update_repo_settings(repo_id, gated="auto")
    with pytest.raises(GatedRepoError, match="not in the authorized list"):
        hf_hub_download(repo_id, ".gitattributes", endpoint=hub.url, token=BOB)
    with pytest.raises(GatedRepoError):
        HfApi(endpoint=hub.url, token=BOB).auth_check(repo_id)
    api.auth_check(repo_id)


def test_a_user_cannot_write_under_another_name(api: HfApi, hub: Hub, repo_id: str) -> None:
    bob = HfApi(endpoint=hub.url, token=BOB)
    for action in (
        lambda: bob.create_repo("acme/from-bob"),
        lambda: bob.upload_file(path_or_fileobj=b"x", path_in_repo="f.txt", repo_id=repo_id),
        lambda: bob.delete_repo(repo_id),
        lambda: bob.move_repo(repo_id, "bob/stolen"),
        lambda: bob.create_tag(repo_id, tag="v1"),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            action()
        assert caught.value.response.status_code == 403


def test_a_moved_repository_is_found_under_both_names_and_a_deleted_one_under_none(api: HfApi, repo_id: str) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="f.txt", repo_id=repo_id)
    api.move_repo(repo_id, f"{repo_id}-new")
    assert api.model_info(repo_id).id == f"{repo_id}-new"
    assert Path(api.hf_hub_download(repo_id, "f.txt")).read_bytes() == b"x"
    api.move_repo(f"{repo_id}-new", f"{repo_id}-newer")
    assert api.model_info(repo_id).id == f"{repo_id}-newer"
    api.create_repo(f"{repo_id}-new")
    assert api.model_info(repo_id).id == f"{repo_id}-newer"
    api.delete_repo(f"{repo_id}-newer")
    assert not api.repo_exists(repo_id)
    assert not api.repo_exists(f"{repo_id}-newer")
    api.create_repo(repo_id)
    assert api.list_repo_files(repo_id) == [".gitattributes"]


def test_a_missing_file_is_cached_with_its_commit(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo_id, "nothing.txt", cache_dir=tmp_path)
    assert [path.name for path in tmp_path.glob("**/.no_exist/*/*")] == ["nothing.txt"]


def test_a_card_with_broken_metadata_is_refused_before_anything_is_uploaded(api: HfApi, repo_id: str) -> None:
    card = b"---\ntags: [a\n---\n# Card\n"
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.create_commit(repo_id, [CommitOperationAdd("README.md", card)], commit_message="card")
    assert api.list_repo_files(repo_id) == [".gitattributes"]


def test_a_card_validates_itself_against_the_hub_that_hf_endpoint_names(hub: Hub, tiny_package: Path) -> None:
    rendered = (tiny_package / "README.md").read_text()
    too_deep = f"---\nextra: {40 * '['}{40 * ']'}\n---\n# Card\n"
    command = [sys.executable, "-c", VALIDATE, rendered, too_deep]
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout) == [
        "valid",
        "- Error: the YAML of a model card may be at most 30 levels deep",
    ]


def test_users_list_their_own_repositories_with_sizes(api: HfApi, hub: Hub, repo_id: str) -> None:
    api.upload_file(path_or_fileobj=b"x" * 1024, path_in_repo="data.bin", repo_id=repo_id)
    [found] = [repo for repo in api.list_user_repos("acme") if repo.id == repo_id]
    assert (found.type, found.visibility, found.storage > 1024) == ("model", "public", True)
    assert repo_id in [repo.id for repo in api.list_user_repos()]
    bob = HfApi(endpoint=hub.url, token=BOB)
    assert repo_id not in [repo.id for repo in [*bob.list_user_repos(), *bob.list_user_repos("acme")]]


def test_whoami_returns_name_and_role(api: HfApi, hub: Hub) -> None:
    response = api.whoami()
    assert (response["name"], response["fullname"], response["orgs"][0]["name"]) == ("alice", "Alice A.", "acme")
    with pytest.raises(HfHubHTTPError, match="Invalid"):
        HfApi(endpoint=hub.url, token="unknown").whoami()


@pytest.mark.parametrize("repo_type", ["dataset", "space"])
def test_datasets_and_spaces_are_listed_and_may_be_called_resolve(api: HfApi, repo_type: str, tmp_path: Path) -> None:
    repo_id = "acme/resolve"
    api.create_repo(repo_id, repo_type=repo_type, space_sdk="static" if repo_type == "space" else None)
    api.upload_file(path_or_fileobj=b"rows", path_in_repo="data.csv", repo_id=repo_id, repo_type=repo_type)
    listed = api.list_datasets(author="acme") if repo_type == "dataset" else api.list_spaces(author="acme")
    assert repo_id in [info.id for info in listed]
    path = api.hf_hub_download(repo_id, "data.csv", repo_type=repo_type, cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"rows"
