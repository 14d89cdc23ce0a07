"""Hot swaps in the real process: a hub of our own, two commits with different scores, and clients that keep sending."""

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from huggingface_hub import HfApi

import eca_hub
from tests.localhub.hub_process import Hub, running_hub
from tests.service.fakes import png
from tests.service.server_process import Served, save_tiny_package, served

pytestmark = pytest.mark.slow

MODEL = "acme/digits"
ADMIN = {"authorization": "Bearer admin"}
IMAGE = png(40, 30, "teal")


@dataclass
class Scene:
    """A hub, a service that follows it, and the scores of each commit."""

    hub: Hub
    service: Served
    scores: dict[str, float]

    def load(self, revision: str | None, model: str = MODEL) -> Any:
        return self.service.client.post("/v1/models", json={"model": model, "revision": revision}, headers=ADMIN)

    def classify(self) -> dict[str, Any]:
        response = self.service.client.post("/v1/classify?top_k=10&model=acme/digits", content=IMAGE)
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    def check(self, body: dict[str, Any]) -> None:
        """The commit that a response names is the one whose weights gave its scores."""
        scores = {one["label"]: one["score"] for one in body["predictions"]}
        assert scores["digit 0"] == pytest.approx(self.scores[body["revision"]], abs=1e-3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("reload")
    with running_hub(folder / "hub") as hub:
        scores = {}
        for seed, branch in enumerate(("main", "next")):
            package = save_tiny_package(folder / branch, seed=seed)
            published = eca_hub.push_to_hub(package, MODEL, branch=branch, endpoint=hub.url, token=hub.token)
            predictions = eca_hub.Classifier.from_pretrained(package).predict(IMAGE, top_k=10)
            scores[published.revision] = next(one.score for one in predictions if one.label == "digit 0")
        assert abs(len(scores) * max(scores.values()) - sum(scores.values())) > 0.01, (
            "the two models give different scores"
        )
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(folder / "cache"),
            "ECA_ADMIN_KEYS": "admin",
        }
        arguments = ("--model", f"{MODEL}@{next(iter(scores))}", "--revision_poll_s", "0.1", "--allow_repos", "acme/*")
        with served(*arguments, cwd=None, **environment) as service:
            service.wait_until_ready()
            yield Scene(hub, service, scores)


def test_swaps_under_load_lose_no_request_and_every_response_is_of_the_commit_it_names(scene: Scene) -> None:
    is_over = threading.Event()

    def send() -> list[dict[str, Any]]:
        bodies = []
        while not is_over.is_set():
            bodies.append(scene.classify())
        return bodies

    a, b = scene.scores
    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        requests = [clients.submit(send) for _ in range(4)]
        try:
            for revision in [b, a] * 5:
                loaded = scene.load(revision)
                assert loaded.status_code == 200, loaded.text
                assert loaded.json()["revision"] == revision
                assert scene.classify()["revision"] == revision
        finally:
            is_over.set()
        bodies = [body for one in requests for body in one.result()]
    for body in bodies:
        scene.check(body)
    assert {body["revision"] for body in bodies} == {a, b}
    metrics = scene.service.client.get("/metrics").text
    size = sum(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("eca_weights_bytes "))
    assert size < 2 * 4 * 300_000, "one network, not eleven"


def publish_broken(scene: Scene, branch: str, name: str, content: bytes | None) -> str:
    """Commit a broken file on top of a branch of its own, past all checks of ours."""
    api = HfApi(endpoint=scene.hub.url, token=scene.hub.token)
    api.create_branch(MODEL, branch=branch, exist_ok=True)
    if content is None:
        return str(api.delete_file(name, MODEL, revision=branch).oid)
    return str(api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=MODEL, revision=branch).oid)


def weights(**changes: Any) -> bytes:
    model = eca_hub.create_model("eca_resnet20", num_classes=10)
    return safetensors.torch.save({**model.state_dict(), **changes})


def broken_files() -> dict[str, tuple[str, bytes | None]]:
    whole, name = weights(), "model.safetensors"
    state = safetensors.torch.load(whole)
    last = next(key for key in state if key.endswith("fc.weight"))
    fewer = {key: tensor for key, tensor in state.items() if key != last}
    return {
        "one-byte-short": (name, whole[:-1]),
        "only-a-header": (name, whole[:200]),
        "empty": (name, b""),
        "one-byte-more": (name, whole + b"x"),
        "huge-header": (name, (2**63 - 1).to_bytes(8, "little") + whole[8:]),
        "nan": (name, weights(**{last: state[last] * float("nan")})),
        "missing-tensor": (name, safetensors.torch.save(fewer)),
        "other-shape": (name, weights(**{last: state[last][:5].contiguous()})),
        "no-weights": (name, None),
        "config-is-no-json": ("config.json", b"{"),
        "config-is-a-list": ("config.json", b"[]"),
    }


@pytest.mark.parametrize("how", broken_files())
def test_a_broken_revision_is_refused_and_the_old_one_runs_on(scene: Scene, how: str) -> None:
    before = scene.classify()["revision"]
    publish_broken(scene, how, *broken_files()[how])
    response = scene.load(how)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["code"] in ("checkpoint_mismatch", "not_an_eca_model", "invalid_config")
    assert scene.service.client.get("/readyz").status_code == 200
    body = scene.classify()
    assert body["revision"] == before
    scene.check(body)


def test_a_revision_or_repository_that_the_hub_lacks_is_a_typed_error(scene: Scene) -> None:
    assert scene.load("no-such-branch").json()["error"]["code"] == "revision_not_found"
    assert scene.load(None, "acme/absent").json()["error"]["code"] == "repo_not_found"
    assert scene.load(None, "other/one").json()["error"]["code"] == "repo_not_allowed"


def test_a_branch_that_moves_is_followed_past_a_bad_commit(scene: Scene, tmp_path: Path) -> None:
    loaded = scene.load("main")
    assert loaded.status_code == 200, loaded.text
    first = loaded.json()["revision"]
    bad = publish_broken(scene, "main", "config.json", b"{")
    package = save_tiny_package(tmp_path / "third", seed=3)
    published = eca_hub.push_to_hub(package, MODEL, endpoint=scene.hub.url, token=scene.hub.token)
    predictions = eca_hub.Classifier.from_pretrained(package).predict(IMAGE, top_k=10)
    scene.scores[published.revision] = next(one.score for one in predictions if one.label == "digit 0")
    deadline = time.monotonic() + 30
    while (body := scene.classify())["revision"] != published.revision:
        assert body["revision"] == first != bad
        assert time.monotonic() < deadline
        time.sleep(0.02)
    scene.check(body)
