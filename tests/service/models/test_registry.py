"""Finding and loading models."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eca_hub.errors import CheckpointMismatch, RepoNotFound
from eca_service.errors import Busy, InvalidRequest, ModelNotLoaded, NotReady
from eca_service.inference.model import ServedModel
from eca_service.inference.types import ModelInfo
from eca_service.models.registry import Registry
from eca_service.models.source import ModelSource
from tests.service.fakes import fake_model, model_info, run, settle


async def open_fake(source: ModelSource) -> ServedModel[Any, Any]:
    if source.id_or_folder == "acme/absent":
        raise RepoNotFound("no such repository")
    return fake_model(model_id=source.id_or_folder)


def test_a_model_is_found_by_its_id_and_the_only_one_without() -> None:
    async def scene() -> None:
        registry = Registry([ModelSource("acme/a")], open_fake)
        await registry.load_all()
        assert registry.is_ready
        assert registry.find("acme/a") is registry.find(None)
        with pytest.raises(ModelNotLoaded, match=r"acme/a"):
            registry.find("acme/A")
        await registry.close()

    run(scene())


def test_among_several_models_one_must_be_named() -> None:
    async def scene() -> None:
        registry = Registry([ModelSource("acme/a"), ModelSource("acme/b")], open_fake)
        await registry.load_all()
        with pytest.raises(InvalidRequest, match=r"acme/a, acme/b"):
            registry.find(None)
        assert registry.find("acme/b").info.model_id == "acme/b"
        await registry.close()

    run(scene())


def test_a_model_that_is_loading_is_not_ready() -> None:
    async def scene() -> None:
        gate = asyncio.Event()

        async def open_slowly(source: ModelSource) -> ServedModel[Any, Any]:
            await gate.wait()
            return await open_fake(source)

        registry = Registry([ModelSource("acme/a")], open_slowly)
        loading = asyncio.create_task(registry.load_all())
        await settle()
        assert registry.pending() == ["acme/a: loading"]
        with pytest.raises(NotReady):
            registry.find("acme/a")
        gate.set()
        await loading
        assert registry.is_ready
        assert registry.pending() == []
        await registry.close()

    run(scene())


def test_a_model_of_the_start_serves_while_it_is_optimized_and_nothing_is_loaded_for_it_meanwhile() -> None:
    async def scene() -> None:
        gate = asyncio.Event()

        async def optimize() -> ModelInfo:
            await gate.wait()
            return model_info("acme/a", weights_bytes=1)

        async def open_model(source: ModelSource) -> ServedModel[Any, Any]:
            return fake_model(model_id="acme/a", weights_bytes=2, optimize=optimize)

        registry = Registry([ModelSource("acme/a")], open_model)
        loading = asyncio.create_task(registry.load_all())
        await settle()
        assert (registry.entries[0].state, registry.find(None).info.weights_bytes) == ("updating", 2)
        assert (registry.is_ready, registry.pending()) == (False, ["acme/a: being optimized"])
        with pytest.raises(Busy):
            await registry.load(ModelSource("acme/a"))
        with pytest.raises(Busy):
            await registry.unload("acme/a")
        gate.set()
        await loading
        assert (registry.entries[0].state, registry.find(None).info.weights_bytes) == ("ready", 1)
        assert (registry.is_ready, registry.pending()) == (True, [])
        await registry.close()

    run(scene())


def test_another_revision_is_optimized_before_it_replaces_the_old_one() -> None:
    async def scene() -> None:
        states = []

        async def optimize() -> ModelInfo:
            states.append((registry.entries[0].state, registry.entries[0].model is None))
            return model_info("acme/a", weights_bytes=1)

        async def open_model(source: ModelSource) -> ServedModel[Any, Any]:
            return fake_model(model_id="acme/a", weights_bytes=2, optimize=optimize)

        registry = Registry([ModelSource("acme/a")], open_model)
        await registry.load_all()
        old = registry.find(None)
        loaded = await registry.load(ModelSource("acme/a", "v2"))
        assert loaded.model is not old
        assert (loaded.state, registry.find(None).info.weights_bytes) == ("ready", 1)
        assert states == [("updating", False)] * 2
        await registry.close()

    run(scene())


def test_a_model_that_is_too_large_as_it_was_loaded_serves_once_its_optimized_form_fits() -> None:
    async def scene() -> None:
        async def optimize() -> ModelInfo:
            assert not registry.is_ready
            return model_info("acme/a", weights_bytes=1)

        async def open_model(source: ModelSource) -> ServedModel[Any, Any]:
            return fake_model(model_id="acme/a", weights_bytes=2, optimize=optimize)

        registry = Registry([ModelSource("acme/a")], open_model, max_weights_bytes=1)
        await registry.load_all()
        assert registry.is_ready
        await registry.close()

    run(scene())


def test_a_model_that_does_not_load_is_kept_as_failed_and_the_next_is_loaded() -> None:
    async def scene() -> None:
        registry = Registry([ModelSource("acme/absent"), ModelSource("acme/b")], open_fake)
        await registry.load_all()
        assert registry.loaded.is_set()
        assert not registry.is_ready
        assert isinstance(registry.failure, RepoNotFound)
        assert registry.find("acme/b").info.model_id == "acme/b"
        with pytest.raises(NotReady):
            registry.find("acme/absent")
        await registry.close()

    run(scene())


def test_a_model_that_the_hub_does_not_have_yet_is_retried_for_the_given_time() -> None:
    async def scene() -> None:
        loop, asked_s = asyncio.get_running_loop(), list[float]()

        async def open_late(source: ModelSource) -> ServedModel[Any, Any]:
            asked_s.append(loop.time())
            if loop.time() < 5:
                raise RepoNotFound("no such repository")
            return fake_model(model_id=source.id_or_folder)

        waiting = Registry([ModelSource("acme/a")], open_late, wait_s=10)
        loading = asyncio.create_task(waiting.load_all())
        await settle()
        assert waiting.pending() == ["acme/a: loading"]
        assert not waiting.is_ready
        await loading
        assert waiting.pending() == []
        assert asked_s == [0, 2, 4, 6]
        await waiting.close()

    async def scene_of_giving_up() -> None:
        failing = Registry([ModelSource("acme/absent")], open_fake, wait_s=10)
        await failing.load_all()
        assert isinstance(failing.failure, RepoNotFound)
        assert asyncio.get_running_loop().time() == 10

    run(scene())
    run(scene_of_giving_up())


def test_a_folder_that_appears_while_a_model_of_its_name_is_waited_for_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    async def open_folder(source: ModelSource) -> ServedModel[Any, Any]:
        if not source.folder_id:
            (tmp_path / "runs" / "later").mkdir(parents=True)
            raise RepoNotFound("no such repository")
        return fake_model(model_id=source.public_id)

    async def scene() -> None:
        registry = Registry([ModelSource.parse("runs/later")], open_folder, wait_s=10)
        await registry.load_all()
        assert ids(registry) == ["runs/later"]
        assert registry.entries[0].source == ModelSource("runs/later", folder_id="runs/later")
        assert registry.is_ready
        await registry.close()

    with caplog.at_level("INFO"):
        run(scene())
    assert "runs/later is a folder by now" in caplog.text


def test_while_a_model_of_the_start_is_waited_for_others_can_be_loaded() -> None:
    async def scene() -> None:
        registry = Registry([ModelSource("acme/absent"), ModelSource("acme/a")], open_fake, wait_s=3600)
        loading = asyncio.create_task(registry.load_all())
        await settle()
        assert registry.pending() == ["acme/absent: loading"]
        await registry.load(ModelSource("acme/b"))
        assert asyncio.get_running_loop().time() == 0
        loading.cancel()
        await registry.close()

    run(scene())


def test_once_a_model_has_failed_for_good_no_other_is_waited_for_and_each_failure_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def open_each(source: ModelSource) -> ServedModel[Any, Any]:
        if source.id_or_folder == "acme/broken":
            raise CheckpointMismatch("other shapes")
        return await open_fake(source)

    async def scene() -> None:
        sources = [ModelSource("acme/absent"), ModelSource("acme/broken"), ModelSource("acme/a")]
        registry = Registry(sources, open_each, wait_s=3600)
        await registry.load_all()
        assert asyncio.get_running_loop().time() == 0
        assert registry.loaded.is_set()
        assert [entry.state for entry in registry.entries] == ["failed", "failed", "ready"]
        # The command prints the first failure.
        assert isinstance(registry.failure, RepoNotFound)
        assert "acme/broken did not load: other shapes" in caplog.text
        await registry.close()

    run(scene())


def test_errors_that_waiting_cannot_fix_are_not_retried() -> None:
    async def scene() -> None:
        async def open_broken(source: ModelSource) -> ServedModel[Any, Any]:
            raise CheckpointMismatch("other shapes")

        registry = Registry([ModelSource("acme/a")], open_broken, wait_s=10)
        await registry.load_all()
        assert isinstance(registry.failure, CheckpointMismatch)
        assert asyncio.get_running_loop().time() == 0

    run(scene())


async def open_revision(source: ModelSource) -> ServedModel[Any, Any]:
    commit = (source.revision or "main").encode().hex().ljust(40, "0")
    return fake_model(model_id=source.id_or_folder, revision=commit)


def ids(registry: Registry) -> list[str]:
    return [entry.model_id for entry in registry.entries]


def test_two_revisions_of_a_repository_are_named_with_their_revision() -> None:
    async def scene() -> None:
        registry = Registry([ModelSource("acme/a", "v1"), ModelSource("acme/a")], open_revision)
        await registry.load_all()
        first, second = (entry.model for entry in registry.entries)
        assert first is not None
        assert second is not None
        assert ids(registry) == [first.model_id, second.model_id] == ["acme/a@v1", "acme/a@main"]
        for model in (first, second):
            assert registry.find(model.model_id) is model
            assert registry.find(f"acme/a@{model.info.revision}") is model
            assert registry.find("acme/a", model.info.revision) is model
            assert registry.find(model.model_id, model.info.revision) is model
        for model_id in ("acme/a", None):
            with pytest.raises(InvalidRequest, match="Several") as refusal:
                registry.find(model_id)
            assert "acme/a@v1, acme/a@main" in refusal.value.hint
        with pytest.raises(ModelNotLoaded):
            registry.find("acme/a@v3")
        with pytest.raises(ModelNotLoaded, match=second.info.revision):
            registry.find("acme/a@main", first.info.revision)
        await registry.load(ModelSource("acme/a", "v1"))
        assert registry.find("acme/a@v1") is not first, "the entry of this revision is replaced"
        await registry.load(ModelSource("acme/a", "main"))
        assert registry.find("acme/a@main") is not second, "no revision is main"
        await registry.load(ModelSource("acme/a", "v3"))
        assert ids(registry) == ["acme/a@v1", "acme/a@main", "acme/a@v3"], "another revision is added"
        await registry.unload("acme/a@v1")
        await registry.unload("acme/a@v3")
        assert ids(registry) == [registry.find("acme/a").model_id] == ["acme/a"]
        assert registry.find("acme/a@main") is registry.find("acme/a"), "its longer id still works"
        await registry.close()

    run(scene())


def test_two_branches_at_one_commit_are_found_by_it() -> None:
    async def open_commit(source: ModelSource) -> ServedModel[Any, Any]:
        return fake_model(model_id=source.id_or_folder, revision="a" * 40)

    async def scene() -> None:
        registry = Registry([ModelSource("acme/a"), ModelSource("acme/a", "v1")], open_commit)
        await registry.load_all()
        assert registry.find("acme/a", "a" * 40) is registry.find("acme/a@main")
        assert registry.find("acme/a@v1", "a" * 40) is registry.find("acme/a@v1")
        await registry.close()

    run(scene())


def test_a_request_without_an_id_is_for_the_only_model_of_the_start_and_for_no_other() -> None:
    async def scene() -> None:
        gate = asyncio.Event()

        async def open_gated(source: ModelSource) -> ServedModel[Any, Any]:
            if source.id_or_folder != "acme/a":
                await gate.wait()
            return await open_fake(source)

        registry = Registry([ModelSource("acme/a")], open_gated)
        await registry.load_all()
        first = registry.find(None)
        loading = asyncio.create_task(registry.load(ModelSource("acme/b")))
        await settle()
        assert registry.find(None) is first
        gate.set()
        await loading
        assert registry.find(None) is first
        await registry.unload("acme/a")
        with pytest.raises(ModelNotLoaded, match=r"acme/a.*Loaded: acme/b"):
            registry.find(None)
        await registry.load(ModelSource("acme/a"))
        assert registry.find(None).model_id == "acme/a"
        await registry.close()

    run(scene())


def test_a_start_model_that_was_evicted_is_not_replaced_by_the_model_that_took_its_memory() -> None:
    async def open_large(source: ModelSource) -> ServedModel[Any, Any]:
        return fake_model(model_id=source.id_or_folder, weights_bytes=60)

    async def scene() -> None:
        registry = Registry([ModelSource("acme/cats")], open_large, max_weights_bytes=100)
        await registry.load_all()
        await registry.load(ModelSource("acme/xrays"))
        assert ids(registry) == ["acme/xrays"]
        with pytest.raises(ModelNotLoaded, match="acme/cats"):
            registry.find(None)
        await registry.close()

    run(scene())
