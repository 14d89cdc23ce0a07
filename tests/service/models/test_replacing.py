"""Loading, replacing and unloading models while requests run: with gates in place of weights."""

import asyncio
import threading
from typing import Any

import pytest

from eca_hub.errors import CheckpointMismatch, ChecksumMismatch, HubUnavailable
from eca_service.errors import Busy, InsufficientMemory, ModelNotLoaded, NotReady, UnfitModel
from eca_service.http.server import DAEMON_THREADS
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import Classification
from eca_service.inference.types import ImageResult
from eca_service.models.registry import Registry
from eca_service.models.revision_watcher import RevisionWatcher, find_commit_on_hub, follows_a_branch
from eca_service.models.source import ModelSource
from tests.service.fakes import GatedRunner, fake_model, run, settle

A, B, C = ("a" * 40, "b" * 40, "c" * 40)


class Workshop:
    """Opens fake models; records which were freed."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.freed: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.runner: GatedRunner | None = None
        self.weights_bytes = 10

    async def open(self, source: ModelSource) -> ServedModel[Any, Any]:
        revision = source.revision or A
        self.opened.append(revision)
        await self.gate.wait()
        if revision in self.errors:
            raise self.errors[revision]
        name = f"{source.id_or_folder}@{revision[:1]}"
        return fake_model(
            self.runner,
            model_id=source.id_or_folder,
            revision=revision,
            weights_bytes=self.weights_bytes,
            close=lambda: self.freed.append(name),
        )


async def started(workshop: Workshop, *ids: str, max_weights_bytes: int = 0) -> Registry:
    registry = Registry([ModelSource(model_id) for model_id in ids], workshop.open, max_weights_bytes=max_weights_bytes)
    await registry.load_all()
    return registry


def revision_of(registry: Registry, model_id: str | None = None) -> str:
    return registry.find(model_id).info.revision


def test_the_old_model_serves_until_the_new_one_is_ready_and_is_freed_after_its_last_request() -> None:
    async def scene() -> None:
        workshop = Workshop()
        workshop.runner = slow = GatedRunner()
        registry = await started(workshop, "acme/a")

        async def send() -> str:
            with registry.acquire(None) as model:
                (outcome,) = await model.run(Classification(), [b"1"])
                assert isinstance(outcome, ImageResult)
                return model.info.revision

        sent_before = asyncio.create_task(send())
        await settle()
        workshop.gate.clear()
        workshop.runner = None
        loading = asyncio.create_task(registry.load(ModelSource("acme/a", B)))
        await settle()
        assert registry.entries[0].state == "updating"
        assert registry.is_ready
        assert revision_of(registry) == A
        workshop.gate.set()
        await loading
        assert revision_of(registry) == B
        assert await send() == B
        assert workshop.freed == [], "a request still holds the old one"
        slow.gate.set()
        assert await sent_before == A
        await settle()
        assert workshop.freed == ["acme/a@a"]
        await registry.close()

    run(scene())


def test_a_new_one_that_fails_leaves_the_old_as_it_was() -> None:
    async def scene() -> None:
        workshop = Workshop()
        registry = await started(workshop, "acme/a")
        workshop.errors[B] = ChecksumMismatch("other bytes")
        with pytest.raises(ChecksumMismatch):
            await registry.load(ModelSource("acme/a", B))
        assert registry.is_ready
        assert registry.entries[0].state == "ready"
        assert revision_of(registry) == A
        assert workshop.freed == []
        with pytest.raises(ChecksumMismatch):
            await registry.load(ModelSource("acme/new", B))
        assert [entry.model_id for entry in registry.entries] == ["acme/a"]
        assert registry.is_ready
        await registry.close()

    run(scene())


def test_a_model_that_is_being_loaded_is_busy() -> None:
    async def scene() -> None:
        workshop = Workshop()
        registry = await started(workshop, "acme/a")
        workshop.gate.clear()
        loads = [asyncio.create_task(registry.load(ModelSource(name))) for name in ("acme/a", "acme/b")]
        await settle()
        for name in ("acme/a", "acme/b"):
            with pytest.raises(Busy):
                await registry.load(ModelSource(name))
            with pytest.raises(Busy):
                await registry.unload(name)
        assert registry.is_ready, "what is still loading takes nothing away from what runs"
        with pytest.raises(NotReady):
            registry.find("acme/b")
        workshop.gate.set()
        await asyncio.gather(*loads)
        assert registry.find("acme/b").info.model_id == "acme/b"
        await registry.close()

    run(scene())


def test_an_unloaded_model_is_not_found_and_without_any_model_the_service_is_not_ready() -> None:
    async def scene() -> None:
        workshop = Workshop()
        registry = await started(workshop, "acme/a", "acme/b")
        await registry.unload("acme/a")
        with pytest.raises(ModelNotLoaded):
            registry.find("acme/a")
        with pytest.raises(ModelNotLoaded):
            await registry.unload("acme/a")
        ready = [registry.is_ready]
        await registry.unload("acme/b")
        ready.append(registry.is_ready)
        assert ready == [True, False]
        await registry.close()
        assert workshop.freed == ["acme/a@a", "acme/b@a"]

    run(scene())


def test_the_least_recently_used_model_is_evicted() -> None:
    async def scene() -> None:
        workshop = Workshop()
        registry = await started(workshop, "acme/a", "acme/b", max_weights_bytes=25)
        with registry.acquire("acme/a"):
            pass
        await registry.load(ModelSource("acme/c"))
        assert [entry.model_id for entry in registry.entries] == ["acme/a", "acme/c"]
        workshop.weights_bytes = 26
        with pytest.raises(InsufficientMemory):
            await registry.load(ModelSource("acme/d"))
        assert [entry.model_id for entry in registry.entries] == ["acme/a", "acme/c"], "no model is evicted in vain"
        workshop.weights_bytes = 25
        await registry.load(ModelSource("acme/a", B))
        assert [entry.model_id for entry in registry.entries] == ["acme/a"], "the old commit does not count"
        assert registry.weights_bytes == 25
        await registry.close()

    run(scene())


def test_a_new_commit_of_a_branch_is_no_use_of_its_model() -> None:
    async def scene() -> None:
        workshop, branch = Workshop(), Branch()
        registry = await started(workshop, "acme/a", "acme/b", max_weights_bytes=25)
        with registry.acquire("acme/a"):
            pass
        branch.commit = C
        await RevisionWatcher(registry, branch.find, period_s=30).poll()
        assert revision_of(registry, "acme/b") == C
        await registry.load(ModelSource("acme/c"))
        assert [entry.model_id for entry in registry.entries] == ["acme/a", "acme/c"]
        await registry.close()

    run(scene())


def test_models_of_the_start_that_do_not_fit_together_stop_it() -> None:
    async def scene() -> None:
        registry = await started(Workshop(), "acme/a", "acme/b", max_weights_bytes=15)
        assert isinstance(registry.failure, InsufficientMemory)
        await registry.close()

    run(scene())


def test_nothing_is_loaded_while_the_process_ends() -> None:
    async def scene() -> None:
        registry = await started(Workshop(), "acme/a")
        registry.is_draining = True
        with pytest.raises(NotReady):
            await registry.load(ModelSource("acme/b"))
        await registry.close()

    run(scene())


class Branch:
    """A hub with one branch."""

    def __init__(self) -> None:
        self.commit: str | Exception = A
        self.num_polls = 0

    async def find(self, source: ModelSource) -> str:
        self.num_polls += 1
        if isinstance(self.commit, Exception):
            raise self.commit
        return self.commit


def test_a_branch_is_followed_every_period() -> None:
    async def scene() -> None:
        workshop, branch = Workshop(), Branch()
        registry = await started(workshop, "acme/a")
        watching = asyncio.create_task(RevisionWatcher(registry, branch.find, period_s=30).watch())
        await asyncio.sleep(95)
        assert branch.num_polls == 3
        assert workshop.opened == [A], "a branch that stands still costs a question, no more"
        branch.commit = B
        await asyncio.sleep(30)
        assert revision_of(registry) == B
        assert registry.entries[0].source == ModelSource("acme/a"), "it still follows the branch"
        watching.cancel()
        await registry.close()

    run(scene())


def test_a_bad_commit_is_tried_once_and_one_that_could_not_be_fetched_again() -> None:
    async def scene() -> None:
        workshop, branch = Workshop(), Branch()
        registry = await started(workshop, "acme/a")
        watcher = RevisionWatcher(registry, branch.find, period_s=30)
        workshop.errors = {B: CheckpointMismatch("other tensors"), C: HubUnavailable("no response")}
        for commit, num_tries in ((B, 1), (C, 3)):
            branch.commit = commit
            for _ in range(3):
                await watcher.poll()
            assert workshop.opened.count(commit) == num_tries
            assert revision_of(registry) == A
            assert registry.is_ready
        del workshop.errors[C]
        await watcher.poll()
        assert revision_of(registry) == C
        await registry.close()

    run(scene())


@pytest.mark.parametrize("error", [InsufficientMemory("too large"), ChecksumMismatch("damaged in the cache")])
def test_a_commit_that_finds_no_memory_or_was_damaged_is_tried_again_ever_less_often_until_it_is_served(
    error: Exception,
) -> None:
    async def scene() -> None:
        workshop, branch = Workshop(), Branch()
        registry = await started(workshop, "acme/a")
        watcher = RevisionWatcher(registry, branch.find, period_s=30)
        workshop.errors = {B: error, C: UnfitModel("out of memory")}
        polls_with_a_try = []
        for commit in (B, C):
            branch.commit = commit
            for poll in range(100):
                before = workshop.opened.count(commit)
                await watcher.poll()
                if workshop.opened.count(commit) > before:
                    polls_with_a_try.append((commit, poll))
        tried = {commit: [poll for each, poll in polls_with_a_try if each == commit] for commit in (B, C)}
        assert tried == {B: [0, 1, 3, 7, 15, 31, 63], C: [0, 1, 3, 7]}
        workshop.errors = {}
        branch.commit = B
        for _ in range(64):
            await watcher.poll()
        assert revision_of(registry) == B
        await registry.close()

    run(scene())


def test_a_hub_that_does_not_respond_changes_nothing() -> None:
    async def scene() -> None:
        workshop, branch = Workshop(), Branch()
        registry = await started(workshop, "acme/a")
        branch.commit = OSError("unplugged")
        await RevisionWatcher(registry, branch.find, period_s=30).poll()
        assert revision_of(registry) == A
        await registry.close()

    run(scene())


@pytest.mark.parametrize("change", ["unloaded", "replaced"])
def test_what_an_admin_does_while_the_hub_is_asked_stands(change: str) -> None:
    async def scene() -> None:
        workshop, asked, gate = Workshop(), asyncio.Event(), asyncio.Event()
        registry = await started(workshop, "acme/a", "acme/b")

        async def find(source: ModelSource) -> str:
            asked.set()
            await gate.wait()
            return C

        poll = asyncio.create_task(RevisionWatcher(registry, find, period_s=30).poll())
        await asked.wait()
        if change == "unloaded":
            await registry.unload("acme/a")
        else:
            await registry.load(ModelSource("acme/a", B))
        gate.set()
        await poll
        revisions = {entry.source: entry.model and entry.model.info.revision for entry in registry.entries}
        assert revisions == {
            **({ModelSource("acme/a", B): B} if change == "replaced" else {}),
            ModelSource("acme/b"): C,
        }
        await registry.close()

    run(scene())


def test_folders_and_commits_are_not_followed() -> None:
    assert follows_a_branch(ModelSource("acme/a"))
    assert follows_a_branch(ModelSource("acme/a", "v1"))
    assert not follows_a_branch(ModelSource("acme/a", A))
    assert not follows_a_branch(ModelSource("/models/acme/a"))


def test_a_poll_of_a_hub_that_hangs_ends_in_time_and_does_not_delay_the_end_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()
    threads: list[threading.Thread] = []

    class HangingApi:
        def model_info(self, *args: object, **options: object) -> None:
            threads.append(threading.current_thread())
            gate.wait()

    monkeypatch.setattr("huggingface_hub.HfApi", HangingApi)

    async def scene() -> None:
        with pytest.raises(TimeoutError):
            await find_commit_on_hub(ModelSource("acme/a"))
        assert asyncio.get_running_loop().time() <= 60

    run(scene())
    [thread] = threads
    assert thread.is_alive(), "the loop has ended without it"
    assert thread.daemon
    assert thread.name in DAEMON_THREADS
    gate.set()
    thread.join()
