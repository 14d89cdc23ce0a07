"""Publishing through the unmodified client to a real local hub, a process of its own: one commit, or nothing."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

import eca_hub
from eca_hub.errors import (
    AccessDenied,
    CheckpointMismatch,
    EcaHubError,
    HubError,
    HubUnavailable,
    InvalidConfig,
    InvalidPackage,
    PushConflict,
    RepoNotFound,
    UnknownName,
)
from eca_hub.hub.card.edit import read_metadata
from eca_hub.hub.package import FILES
from eca_hub.hub.pretrained import check_package, read_package
from eca_hub.hub.pull import pull, pull_to
from eca_hub.hub.push import PushResult, push_folder
from eca_hub.hub.push_files import plan_push
from eca_hub.releases import list_releases
from tests.conftest import make_image
from tests.localhub.hub_process import Hub


def change_card(package: Path, text: str = "\nAnother line.\n") -> None:
    with (package / "README.md").open("a") as file:
        file.write(text)


def change_labels_and_weights(package: Path) -> None:
    document = json.loads((package / "config.json").read_text())
    document["label_names"] = document["label_names"][::-1]
    (package / "config.json").write_text(json.dumps(document))
    weights = safetensors.torch.load_file(package / "model.safetensors")
    safetensors.torch.save_file({**weights, "fc.bias": weights["fc.bias"] + 1}, package / "model.safetensors")


def commits(hub: Hub, model_id: str, branch: str = "main") -> list[str]:
    api = HfApi(endpoint=hub.url, token=hub.token)
    return [commit.commit_id for commit in api.list_repo_commits(model_id, revision=branch)]


def test_what_was_published_is_what_is_pulled(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    published = push()
    pulled = pull(model_id, endpoint=hub.url)
    assert (published.is_new, published.model_id) == (True, model_id)
    assert pulled.revision == published.revision == commits(hub, model_id)[0]
    assert pulled.weights_bytes == (package / "model.safetensors").read_bytes()
    assert pulled.config_bytes == (package / "config.json").read_bytes()


def test_a_network_is_published_without_a_folder(hub: Hub, model_id: str) -> None:
    model = eca_hub.create_model("eca_resnet20", num_classes=3)
    labels = ["cat", "dog", "eel"]
    result = eca_hub.push_to_hub(model, model_id, labels=labels, endpoint=hub.url, token=hub.token)
    package = pull(model_id, endpoint=hub.url)
    assert package.revision == result.revision
    loaded, config = read_package(package)
    assert config.labels == ("cat", "dog", "eel")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_labels_are_for_a_network_and_not_for_a_folder(package: Path) -> None:
    with pytest.raises(InvalidConfig, match="A folder has its own labels"):
        eca_hub.push_to_hub(package, "acme/model", labels=["cat"])


def test_only_the_three_files_travel_and_in_one_commit(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    (package / "last.ckpt").write_bytes(b"secret")
    (package / "token").write_text("hf_secret")
    push()
    files = HfApi(endpoint=hub.url, token=hub.token).list_repo_files(model_id)
    assert set(files) - {".gitattributes"} == set(FILES)
    assert len(commits(hub, model_id)) == 2  # the hub's own first one, and ours


def test_the_plots_that_the_card_shows_travel_with_it(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, tmp_path: Path
) -> None:
    (package / "curves.png").write_bytes(make_image())
    (package / "detections.png").write_bytes(make_image())
    change_card(package, "\n![Loss by epoch](curves.png)\n")
    planned = {each.name for each in plan_push(package, model_id, endpoint=hub.url, token=hub.token)}
    first = push()
    files = HfApi(endpoint=hub.url, token=hub.token).list_repo_files(model_id)
    assert set(files) - {".gitattributes"} == {*FILES, "curves.png"} == planned
    assert push().revision == first.revision
    pull_to(model_id, tmp_path / "copy", endpoint=hub.url, token=hub.token)
    assert (tmp_path / "copy/curves.png").read_bytes() == (package / "curves.png").read_bytes()
    (package / "curves.png").write_bytes(make_image(20, 20))
    assert push().is_new


def test_plots_that_the_card_no_longer_shows_are_deleted_in_the_same_commit(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    card = (package / "README.md").read_bytes()
    for name in ("curves.png", "confusion.png"):
        (package / name).write_bytes(make_image())
    change_card(package, "\n![Loss by epoch](curves.png)\n")
    push()
    api = HfApi(endpoint=hub.url, token=hub.token)
    assert not api.file_exists(model_id, "confusion.png"), "the card does not show it"
    (package / "README.md").write_bytes(card)
    plan = {each.name: each.is_deleted for each in plan_push(package, model_id, endpoint=hub.url, token=hub.token)}
    assert plan == {**dict.fromkeys(FILES, False), "curves.png": True}
    last = push()
    assert not api.file_exists(model_id, "curves.png")
    assert len(commits(hub, model_id)) == 3
    assert push() == replace(last, is_new=False)


# Linux takes both addresses for this machine; only the first one says so.
@pytest.mark.parametrize(("host", "is_by_xet"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_weights_are_sent_by_lfs_to_a_hub_on_this_machine_and_by_xet_to_others(
    host: str,
    is_by_xet: bool,
    hub: Hub,
    package: Path,
    model_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("NO_PROXY", host)
    endpoint = hub.url.replace("127.0.0.1", host)
    weights = package / "model.safetensors"
    # Bytes that the hub does not have yet, so that they have to travel.
    weights.write_bytes(weights.read_bytes()[:-8] + os.urandom(8))
    before = set((hub.root / "xorbs").rglob("*.json"))
    push_folder(package, model_id, endpoint=endpoint, token=hub.token)
    assert pull(model_id, endpoint=endpoint).weights_bytes == weights.read_bytes()
    assert (set((hub.root / "xorbs").rglob("*.json")) != before) is is_by_xet
    assert not caplog.records


def test_a_second_push_of_the_same_bytes_does_nothing(hub: Hub, push: Callable[..., PushResult], model_id: str) -> None:
    first, second = push(), push()
    assert second.revision == first.revision
    assert (first.is_new, second.is_new) == (True, False)
    assert len(commits(hub, model_id)) == 2


def test_the_card_on_the_hub_names_the_model_and_the_folder_stays(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, tmp_path: Path
) -> None:
    change_card(package, "\nOWNER/NAME is what the owner typed here.\n")
    card = (package / "README.md").read_text()
    first = push()
    assert (package / "README.md").read_text() == card
    pull_to(model_id, tmp_path / "pulled", endpoint=hub.url)
    pulled = (tmp_path / "pulled" / "README.md").read_text()
    assert f'from_pretrained("{model_id}")' in pulled
    assert f"eca-hub serve --model {model_id} --port" in pulled
    assert pulled.count("OWNER/NAME") == 1
    again = push_folder(tmp_path / "pulled", model_id, endpoint=hub.url, token=hub.token)
    assert (push().revision, again.revision) == (first.revision, first.revision)


def test_a_changed_card_makes_one_more_commit(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    first = push()
    change_card(package)
    second = push(message="Better words")
    assert second.is_new
    assert commits(hub, model_id)[:2] == [second.revision, first.revision]


def test_branch_tag_and_commit_each_name_a_revision(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    first = push(tag="v1")
    change_card(package)
    second = push(branch="next")
    assert pull(model_id, "v1", endpoint=hub.url).revision == first.revision
    assert pull(model_id, "main", endpoint=hub.url).revision == first.revision
    assert pull(model_id, "next", endpoint=hub.url).revision == second.revision
    assert pull(model_id, second.revision, endpoint=hub.url).revision == second.revision


def test_a_tag_does_not_move(hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str) -> None:
    first = push(tag="v1")
    assert push(tag="v1").revision == first.revision
    change_card(package)
    with pytest.raises(PushConflict, match=r"The tag 'v1' of .* exists, at .* nothing was published"):
        push(tag="v1")
    assert pull(model_id, "v1", endpoint=hub.url).revision == first.revision


def test_a_tag_at_an_older_commit_with_the_same_files_is_refused_for_that_reason(
    push: Callable[..., PushResult], package: Path
) -> None:
    card = (package / "README.md").read_bytes()
    push(tag="v1")
    change_card(package)
    push()
    (package / "README.md").write_bytes(card)
    with pytest.raises(PushConflict, match="which is not the last commit of main; nothing was published"):
        push(tag="v1")


def test_the_plan_for_a_new_branch_compares_with_the_main_one_from_which_it_starts(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    push()
    change_card(package)
    plan = plan_push(package, model_id, branch="new", endpoint=hub.url, token=hub.token)
    assert {each.name: each.is_changed for each in plan} == {
        "config.json": False,
        "model.safetensors": False,
        "README.md": True,
    }


def test_a_taken_tag_is_refused_before_anything_is_published(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    push(tag="v1")
    before = commits(hub, model_id)
    change_card(package)
    for branch in ("main", "new"):
        with pytest.raises(PushConflict, match="nothing was published"):
            push(tag="v1", branch=branch)
    assert commits(hub, model_id) == before
    refs = HfApi(endpoint=hub.url, token=hub.token).list_repo_refs(model_id)
    assert [ref.name for ref in refs.branches] == ["main"]


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ({"tag": "V1.0"}, "has the tag 'v1.0', beside which 'V1.0' cannot exist"),
        ({"tag": "v1.0/a"}, "has the tag 'v1.0', beside which 'v1.0/a' cannot exist"),
        ({"tag": "next"}, "has a branch 'next', and the name would mean both"),
        ({"branch": "v1.0"}, "has a tag 'v1.0', and the name would mean both"),
        ({"branch": "Next"}, "has the branch 'next', beside which 'Next' cannot exist"),
        ({"branch": "next/a"}, "has the branch 'next', beside which 'next/a' cannot exist"),
    ],
)
def test_a_tag_or_branch_that_collides_with_another_name_is_refused_before_anything_is_published(
    ref: dict[str, str], message: str, hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    push(tag="v1.0")
    push(branch="next")
    before = commits(hub, model_id)
    change_card(package)
    with pytest.raises(PushConflict, match=message):
        push(**ref)
    assert commits(hub, model_id) == before
    assert [each.name for each in HfApi(hub.url).list_repo_refs(model_id).branches] == ["main", "next"]


@pytest.mark.parametrize("token", ["hf_ä", "hf_\u201cquoted\u201d", "hf_two\nlines"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(token: str, hub: Hub, package: Path) -> None:
    for call in (partial(push_folder, package), pull):
        with pytest.raises(AccessDenied, match="The token has a character that no token has") as caught:
            call("acme/model", endpoint=hub.url, token=token)
        assert "hf_" not in str(caught.value)


def test_white_space_around_a_token_is_removed(hub: Hub, push: Callable[..., PushResult], model_id: str) -> None:
    revision = push(private=True, token=f" {hub.token}\n").revision
    assert pull(model_id, endpoint=hub.url, token=f"{hub.token}\r\n").revision == revision


@pytest.mark.parametrize("pattern", ["*.safetensors", "*.json", "*"])
def test_a_gitignore_in_the_repository_keeps_no_file_of_a_package_out(
    pattern: str, hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    push()
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.upload_file(repo_id=model_id, path_or_fileobj=f"{pattern}\n".encode(), path_in_repo=".gitignore")
    change_labels_and_weights(package)
    push()
    pulled = pull(model_id, endpoint=hub.url)
    assert pulled.config_bytes == (package / "config.json").read_bytes()
    assert pulled.weights_bytes == (package / "model.safetensors").read_bytes()


def test_a_hub_that_leaves_a_file_out_of_the_commit_is_not_taken_for_success(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_hub.hub.push._IGNORE_NOTHING", "*.safetensors")
    with pytest.raises(HubError, match=r"without model\.safetensors: the hub left them out"):
        push()
    monkeypatch.undo()
    assert push(token=hub.token).is_new
    assert pull(model_id, endpoint=hub.url).weights_bytes == (package / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["v1.lock", "a/.b", "v1.", "refs/tags/v1", "c0ffee" + "0" * 34, "v 1", "../v1", ""])
@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_a_name_that_no_tag_or_branch_can_have_is_refused_without_a_request(
    kind: str, name: str, package: Path
) -> None:
    names: dict[str, Any] = {kind: name}
    with pytest.raises(InvalidConfig):
        push_folder(package, "acme/model", endpoint="http://127.0.0.1:9", **names)


def test_a_tag_called_like_the_branch_is_refused_without_a_request(package: Path) -> None:
    with pytest.raises(InvalidConfig, match="Branch and tag are both 'next'"):
        push_folder(package, "acme/model", endpoint="http://127.0.0.1:9", branch="next", tag="next")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_that_timm_could_not_read_is_refused(encoding: str, package: Path) -> None:
    path = package / "config.json"
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(InvalidPackage, match="is not UTF-8, or begins with a byte order mark"):
        push_folder(package, "acme/model", endpoint="http://127.0.0.1:9")


def test_a_card_in_lower_case_is_not_replaced_by_a_new_one(package: Path) -> None:
    (package / "README.md").rename(package / "readme.md")
    with pytest.raises(
        InvalidPackage, match=r"has readme\.md; the Hub shows only a file called README\.md\. Rename it"
    ):
        push_folder(package, "acme/model", endpoint="http://127.0.0.1:9")


def test_the_sentence_of_the_hub_is_the_reason_of_a_refusal(push: Callable[..., PushResult]) -> None:
    with pytest.raises(AccessDenied, match=r"\(401\): Invalid credentials in Authorization header\. Set HF_TOKEN"):
        push(token="nonsense")


def test_a_card_with_a_byte_order_mark_gets_its_license(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, tmp_path: Path
) -> None:
    card = (package / "README.md").read_text()
    (package / "README.md").write_text(card, "utf-8-sig")
    push(license="mit")
    pull_to(model_id, tmp_path / "copy", endpoint=hub.url)
    copy = (tmp_path / "copy" / "README.md").read_bytes()
    assert read_metadata(copy) == {**read_metadata(card.encode()), "license": "mit"}
    assert copy.count(b"\n---\n") == card.count("\n---\n")


def test_a_folder_without_a_card_is_published_with_one(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, tmp_path: Path
) -> None:
    (package / "README.md").unlink()
    push(license="mit")
    pull_to(model_id, tmp_path / "copy", endpoint=hub.url)
    metadata = read_metadata((tmp_path / "copy" / "README.md").read_bytes())
    assert metadata["license"] == "mit"
    assert not (package / "README.md").exists()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("Modèle".encode("latin-1"), "README.md is not UTF-8: byte 3 is 0xe8"),
        (b"---\nlicense: [\n---\n", "metadata of the model card README.md cannot be read"),
        (b"---\n- a\n---\n", "must be a mapping"),
    ],
)
def test_a_card_that_the_hub_cannot_read_is_refused_before_anything_is_sent(
    card: bytes, message: str, hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    (package / "README.md").write_bytes(card)
    with pytest.raises(InvalidConfig, match=message):
        push()
    with pytest.raises(RepoNotFound):
        pull(model_id, endpoint=hub.url)


def test_metadata_that_the_hub_refuses_stops_the_push_before_anything_is_made(
    hub: Hub, push: Callable[..., PushResult], model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusal:
        status_code = 400

        def json(self) -> dict[str, list[dict[str, str]]]:
            return {"errors": [{"message": '"license" must be one of [mit]'}]}

    class Session:
        def post(self, *_: object, **__: object) -> Refusal:
            return Refusal()

    monkeypatch.setattr("eca_hub.hub.push.get_session", Session)
    with pytest.raises(InvalidConfig, match=r'refuses the metadata .* "license" must be one of'):
        push(branch="new")
    monkeypatch.undo()
    assert not HfApi(endpoint=hub.url, token=hub.token).repo_exists(model_id)


def test_a_repository_with_the_other_visibility_is_refused_before_anything_is_sent(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    push()
    change_card(package)
    with pytest.raises(InvalidConfig, match="exists and is public, not private; nothing was sent"):
        push(private=True)
    assert len(commits(hub, model_id)) == 2


def test_a_push_without_a_token_is_refused_and_leaves_nothing(hub: Hub, package: Path, model_id: str) -> None:
    with pytest.raises(AccessDenied, match="Set HF_TOKEN"):
        push_folder(package, model_id, endpoint=hub.url, token=False)  # type: ignore[arg-type]
    with pytest.raises(RepoNotFound):
        pull(model_id, endpoint=hub.url)


def test_a_dry_run_lists_what_would_be_sent_and_changes_nothing(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str
) -> None:
    plan = plan_push(package, model_id, endpoint=hub.url, token=hub.token)
    assert {each.name: each.is_changed for each in plan} == dict.fromkeys(FILES, True)
    with pytest.raises(RepoNotFound):
        pull(model_id, endpoint=hub.url, token=hub.token)
    push()
    change_card(package)
    plan = plan_push(package, model_id, endpoint=hub.url, token=hub.token)
    assert [each.name for each in plan if each.is_changed] == ["README.md"]
    assert len(commits(hub, model_id)) == 2


class Interference:
    """Stands before the client's `create_commit` and does something around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[Callable[[], Any]], Any]) -> None:
        original = HfApi.create_commit
        self.calls = 0

        def create_commit(api: HfApi, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return act(lambda: original(api, *args, **kwargs))

        monkeypatch.setattr(HfApi, "create_commit", create_commit)


def refusal(status: int) -> HfHubHTTPError:
    import httpx2

    response = httpx2.Response(status, request=httpx2.Request("POST", "http://127.0.0.1/commit"))
    return HfHubHTTPError(f"{status} from the test", response=response)


def test_a_commit_of_another_user_in_between_is_a_conflict_and_nothing_is_written(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push()
    change_card(package)
    api = HfApi(endpoint=hub.url, token=hub.token)
    upload_file = api.upload_file

    def overtake(commit: Callable[[], Any]) -> Any:
        monkeypatch.undo()
        upload_file(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id=model_id)
        return commit()

    Interference(monkeypatch, overtake)
    with pytest.raises(PushConflict, match="Another commit to"):
        push()
    assert len(commits(hub, model_id)) == 3


def test_a_commit_whose_response_was_lost_is_recognized(
    hub: Hub, push: Callable[..., PushResult], model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_response(commit: Callable[[], Any]) -> Any:
        commit()
        raise refusal(500)

    interference = Interference(monkeypatch, lose_the_response)
    published = push()
    assert interference.calls == 1
    assert published.is_new
    assert commits(hub, model_id)[0] == published.revision
    assert len(commits(hub, model_id)) == 2


def test_requests_to_a_busy_hub_are_retried_with_longer_pauses(
    push: Callable[..., PushResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = iter([refusal(409), refusal(409)])

    def be_busy_twice(commit: Callable[[], Any]) -> Any:
        for error in responses:
            raise error
        return commit()

    pauses: list[float] = []
    Interference(monkeypatch, be_busy_twice)
    assert push(wait=pauses.append).is_new
    assert pauses == [0.5, 1.0]


def test_a_hub_that_stays_busy_is_a_conflict(push: Callable[..., PushResult], monkeypatch: pytest.MonkeyPatch) -> None:
    def be_busy(commit: Callable[[], Any]) -> Any:
        raise refusal(409)

    Interference(monkeypatch, be_busy)
    with pytest.raises(PushConflict, match="busy with another commit"):
        push(wait=lambda seconds: None)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_package_that_cannot_be_loaded_is_not_published(
    hub: Hub, push: Callable[..., PushResult], package: Path, model_id: str, damage: str
) -> None:
    content = (package / damage).read_bytes()
    (package / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidPackage):
        push()
    with pytest.raises(RepoNotFound):
        pull(model_id, endpoint=hub.url, token=hub.token)


def test_a_package_of_an_unknown_method_or_of_other_tensors_is_not_published(package: Path) -> None:
    push = partial(eca_hub.push_to_hub, package, "acme/model", endpoint="http://127.0.0.1:9")
    with pytest.raises(HubUnavailable):
        push()
    weights = safetensors.torch.load_file(package / "model.safetensors")
    weights["fc.bias"] = weights["fc.bias"].long()
    safetensors.torch.save_file(weights, package / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"1 of another kind of number \(fc\.bias is torch\.int64"):
        push()
    document = json.loads((package / "config.json").read_text())
    (package / "config.json").write_text(
        json.dumps(
            {**document, "attention": "nosuch", "eca_hub": {"attention": "nosuch", "attention_args": {}, "format": 1}}
        )
    )
    with pytest.raises(UnknownName, match="There is no attention 'nosuch'"):
        push()


def change_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    changed = {name: new for name, tensor in weights.items() if (new := change(name, tensor)) is not None}
    safetensors.torch.save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("attention", "change", "message"),
    [
        ("eca", lambda name, tensor: None if ".se." in name else tensor, r"8 missing \(layer1\.0\.se\.conv\.weight"),
        ("eca", lambda name, tensor: tensor[:, :, 1:] if ".se." in name else tensor, "is a kernel of size 2; "),
        (
            "eca",
            lambda name, tensor: torch.ones(1, 1, 7) if name.endswith("layer1.0.se.conv.weight") else tensor,
            r"layer1\.0\.se\.conv\.weight is a kernel of size 7; the network has one of size 3",
        ),
        ("se", lambda name, tensor: tensor[:1].flatten() if ".se." in name else tensor, "16 of another shape"),
        ("se", lambda name, tensor: tensor + 1 if ".se." in name else tensor, "not zero in the part"),
        ("se", lambda name, tensor: tensor / 0 if name == "fc.bias" else tensor, r"1 with NaN or infinity .*fc\.bias"),
    ],
)
def test_a_package_for_timm_that_cannot_be_loaded_is_not_published(
    attention: str, change: Callable[[str, torch.Tensor], torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    model = eca_hub.create_model("resnet18", attention=attention, num_classes=2)
    folder = eca_hub.save_pretrained(model, tmp_path / "padded", labels=["cat", "dog"])
    change_weights(folder, change)
    with pytest.raises(CheckpointMismatch, match=message):
        eca_hub.push_to_hub(folder, "acme/model", endpoint="http://127.0.0.1:9")


def test_a_detector_and_a_package_padded_for_timm_pass_the_check_before_a_push(
    detector_package: Path, tmp_path: Path
) -> None:
    check_package(detector_package)
    for name in list_releases():
        check_package(name)
    model = eca_hub.create_model("eca_resnet18", num_classes=2)
    check_package(eca_hub.save_pretrained(model, tmp_path / "padded", labels=["cat", "dog"]))


@pytest.mark.parametrize("name", ["nosuch", "../x", "a/b/c", "a/..", "/etc/passwd", "a b/c", "a/b\0", "é/x", ""])
def test_a_malformed_name_is_refused_before_any_request(name: str, package: Path) -> None:
    with pytest.raises(EcaHubError):
        pull(name, endpoint="http://127.0.0.1:9")
    with pytest.raises(InvalidConfig):
        push_folder(package, name, endpoint="http://127.0.0.1:9")
