"""The registry of served models by id: loading, replacing, eviction.

An entry is `loading`, then `ready` or `failed`; a ready one is `updating` while another commit is loaded beside it. The
old model serves until the new one is ready, and is freed when the last request that holds it is finished: no request is
lost to a swap. A model of the start is also `updating` while it serves as it was loaded and is being optimized.

An entry's id is `owner/name`, or `owner/name@revision` for each entry where several revisions are served.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from eca_hub import EcaHubError
from eca_service.errors import Busy, InsufficientMemory, InvalidRequest, ModelNotLoaded, NotReady
from eca_service.inference.model import ServedModel
from eca_service.models.source import ModelSource

State = Literal["loading", "ready", "updating", "failed"]

_logger = logging.getLogger(__name__)


@dataclass
class ModelEntry:
    """One model of the registry."""

    source: ModelSource
    """Where it comes from."""
    state: State = "loading"
    """Whether it responds."""
    model: ServedModel[Any, Any] | None = None
    """The model, once it is ready."""
    error: Exception | None = field(default=None, repr=False)
    """Why it failed to load."""
    load_s: float = 0.0
    """How long its last load took: download, checks and warm-up, without optimization."""
    last_used: int = 0
    """When it was used last, counted in uses of any model."""
    model_id: str = field(init=False)
    """The id that clients use, of no other entry; the registry sets it."""

    def __post_init__(self) -> None:
        self.model_id = self.source.public_id

    @property
    def is_changing(self) -> bool:
        """Whether something is being loaded for it."""
        return self.state in ("loading", "updating")

    def has_id(self, text: str) -> bool:
        """Whether `owner/name` or `owner/name@revision` means this entry."""
        name, _, revision = text.rpartition("@")
        return text in (self.source.public_id, self.source.qualified_id) or (
            name == self.source.public_id and self.is_at(revision)
        )

    def is_at(self, commit: str) -> bool:
        """Whether it serves this commit."""
        return self.model is not None and self.model.info.revision == commit


# They pass when the hub comes up, or when the model is published.
_TRANSIENT_ERRORS = frozenset(["offline", "hub_error", "repo_not_found", "revision_not_found", "not_an_eca_model"])
_RETRY_S = 2.0

OpenModel = Callable[[ModelSource], Awaitable[ServedModel[Any, Any]]]
"""Loads, checks and warms up one; returns when it is ready."""


class Registry:
    """All models of this process.

    Args:
        sources: The models to load at the start.
        open_model: Makes one.
        max_weights_bytes: Limit on the weights of all models together; 0 is no limit. The models that were used least
            recently are evicted for a model that is loaded later.
        wait_s: How long to retry a model of the start that the hub does not have yet.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        open_model: OpenModel,
        *,
        max_weights_bytes: int = 0,
        wait_s: float = 0.0,
    ) -> None:
        self.entries = [ModelEntry(source) for source in sources]
        self.loaded = asyncio.Event()
        """Set when every model of the start is ready, in its fastest form, or failed."""
        self.is_draining = False
        """Set when the process is about to end."""
        self.max_weights_bytes = max_weights_bytes
        # Requests without a model id go to the only model of the start, whatever is loaded beside it later, and are
        # refused while it is not loaded: another model has other classes.
        self._default_id = sources[0].public_id if len(sources) == 1 else None
        self._open_model = open_model
        self._wait_s = wait_s
        self._one_at_a_time = asyncio.Lock()
        self._num_uses = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._assign_ids()

    @property
    def is_ready(self) -> bool:
        """Whether there are models, every model of the start is in its fastest form, and all their engines respond.

        A model that is being optimized serves the requests that come, but a load balancer should send none yet.
        """
        required = [entry for entry in self.entries if entry.model is not None or entry.error]
        is_serving = all(entry.model is not None and entry.model.is_healthy for entry in required)
        return self.loaded.is_set() and bool(required) and is_serving

    @property
    def failure(self) -> Exception | None:
        """Why the first model of the start that failed did not load."""
        return next((entry.error for entry in self.entries if entry.error), None)

    @property
    def weights_bytes(self) -> int:
        """Size of the weights of all models that can be found."""
        return sum(entry.model.info.weights_bytes for entry in self.entries if entry.model)

    def pending(self) -> list[str]:
        """Ids of the models that are waited for, each with the reason."""
        return [f"{entry.model_id}: {reason}" for entry in self.entries if (reason := self._why_not_ready(entry))]

    def find(self, model_id: str | None, commit: str | None = None) -> ServedModel[Any, Any]:
        """Return a model; code that awaits before using it needs `acquire`.

        Args:
            model_id: `owner/name`, or `owner/name@revision` where several revisions are served; None is the only model
                of the start, or the only model.
            commit: The commit that the model must be at, if given.

        Raises:
            ModelNotLoaded: there is no such model.
            NotReady: it is still loading.
            InvalidRequest: the id is missing and there are several models, or it means several revisions.
        """
        return self._model_of(self._entry_of(model_id, commit))

    @contextmanager
    def acquire(self, model_id: str | None, commit: str | None = None) -> Iterator[ServedModel[Any, Any]]:
        """Find a model and hold it until the block ends, even when another one replaces it meanwhile.

        The arguments are those of `find`.

        Raises:
            ModelNotLoaded: there is no such model.
            NotReady: it is still loading.
            InvalidRequest: the id is missing and there are several models, or it means several revisions.
        """
        entry = self._entry_of(model_id, commit)
        model = self._model_of(entry)
        self._touch(entry)
        with model.hold():
            yield model

    def _why_not_ready(self, entry: ModelEntry) -> str | None:
        if entry.model is None:
            return entry.state
        if not entry.model.is_healthy:
            return "an engine does not respond"
        return "being optimized" if entry.is_changing and not self.loaded.is_set() else None

    async def load_all(self) -> None:
        """Load the models of the start one after the other; a failure is kept in its entry.

        Those that the hub does not have yet are tried again, until the time is over or another model has failed for
        good. Other models can be loaded between the tries.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._wait_s
        entries, logged = list(self.entries), set[str]()
        while True:
            missing = [(entry, error) for entry in entries if (error := await self._load_of_start(entry)) is not None]
            if self.failure is not None or loop.time() + _RETRY_S > until_s:
                break
            for entry, error in missing:
                if (reason := f"{entry.source.id_or_folder} is not available yet: {error.message}") not in logged:
                    logged.add(reason)
                    _logger.info("%s", reason)
            entries = [entry for entry, _ in missing]
            if not entries:
                break
            await asyncio.sleep(_RETRY_S)
        for entry, error in missing:
            entry.state, entry.error = "failed", error
        # The first one is `failure`.
        for entry in [entry for entry in self.entries if entry.error][1:]:
            _logger.error("%s did not load: %s", entry.model_id, entry.error)
        self.loaded.set()

    async def _load_of_start(self, entry: ModelEntry) -> EcaHubError | None:
        """Load one model; return the error that may pass, and keep any other in the entry."""
        async with self._one_at_a_time:
            try:
                if (source := entry.source.prefer_folder()) is not entry.source:
                    _logger.info("%s is a folder by now, which is loaded instead of a repository", source.id_or_folder)
                    entry.source = source
                model = await self._open(entry, source)
                if self._exceeds_limit(model, self.weights_bytes):
                    # Weights of half the width may fit.
                    await model.optimize()
                self._check_memory(model, self.weights_bytes)
                entry.model, entry.state = model, "updating"
                self._assign_ids()
                _logger.info("%s at %s is ready", entry.model_id, model.info.revision)
                await model.optimize()
                entry.state = "ready"
            except Exception as error:
                if isinstance(error, EcaHubError) and error.code in _TRANSIENT_ERRORS:
                    return error
                entry.state, entry.error = "failed", error
                if not isinstance(error, EcaHubError):
                    _logger.exception("loading %s failed", entry.source.id_or_folder)
        return None

    async def load(self, source: ModelSource, *, revision: str | None = None) -> ModelEntry:
        """Load a model, or another revision of one that is served, which serves until the new one is ready.

        Where several revisions of it are served, another one is loaded beside them.

        Args:
            source: What to load, and what the entry follows from now on.
            revision: The commit to load, when the source's revision is a name that was resolved already.

        Raises:
            Busy: it is being loaded already.
            NotReady: the process is about to end.
            InsufficientMemory: it is larger than the limit on all models together.
            EcaHubError: it cannot be loaded; the model that was served before stays.
        """
        if self.is_draining:
            raise NotReady("The service is shutting down.", retry_after_s=5)
        entry = self._entry_to_replace(source)
        if entry is None:
            entry = ModelEntry(source)
            self.entries.append(entry)
            self._assign_ids()
        elif entry.is_changing:
            raise Busy("This model is being loaded already.")
        else:
            entry.state = "updating" if entry.model else "loading"
        return await self._load_into(entry, source, revision)

    async def unload(self, model_id: str) -> None:
        """Remove a model; the requests that hold it are finished.

        Raises:
            ModelNotLoaded: there is no such model.
            InvalidRequest: the id means several revisions.
            Busy: it is being loaded.
        """
        entry = self._entry_of(model_id)
        if entry.is_changing:
            raise Busy("This model is being loaded.")
        self._remove(entry)

    async def close(self) -> None:
        """Finish the requests in flight, then free every model."""
        for entry in self.entries:
            if entry.model is not None:
                await entry.model.close()
        await asyncio.gather(*self._closing)

    async def _load_into(self, entry: ModelEntry, source: ModelSource, revision: str | None) -> ModelEntry:
        old = entry.model
        try:
            async with self._one_at_a_time:
                new = await self._open(entry, replace(source, revision=revision or source.revision))
                try:
                    await new.optimize()
                except BaseException:
                    self._close_later(new)
                    raise
                self._evict_lru(entry, new)
        except BaseException:
            if old is None:
                self.entries.remove(entry)
                self._assign_ids()
            else:
                entry.state = "ready"
            raise
        entry.source, entry.model, entry.state, entry.error = source, new, "ready", None
        self._assign_ids()
        if old is None:
            self._touch(entry)
        _logger.info("%s at %s is ready", entry.model_id, new.info.revision)
        if old is not None:
            self._close_later(old)
        return entry

    async def _open(self, entry: ModelEntry, source: ModelSource) -> ServedModel[Any, Any]:
        started_s = asyncio.get_running_loop().time()
        model = await self._open_model(source)
        entry.load_s = asyncio.get_running_loop().time() - started_s
        return model

    def _evict_lru(self, entry: ModelEntry, new: ServedModel[Any, Any]) -> None:
        """Remove the models that were used least recently, until the new one fits."""
        others = [other for other in self.entries if other is not entry and other.model]
        size = sum(other.model.info.weights_bytes for other in others if other.model)
        evicted = []
        for other in sorted(others, key=lambda other: other.last_used):
            if self._exceeds_limit(new, size) and other.model and not other.is_changing:
                size -= other.model.info.weights_bytes
                evicted.append(other)
        self._check_memory(new, size)
        for other in evicted:
            _logger.info("%s is evicted for %s", other.model_id, new.model_id)
            self._remove(other)

    def _check_memory(self, new: ServedModel[Any, Any], others_bytes: int) -> None:
        if self._exceeds_limit(new, others_bytes):
            self._close_later(new)
            raise InsufficientMemory(
                f"The model has {new.info.weights_bytes / 2**20:.1f} MiB of weights; beside the models that cannot be "
                f"evicted it may have {max(self.max_weights_bytes - others_bytes, 0) / 2**20:.1f} MiB.",
                hint="Raise --max_weights_mib.",
            )

    def _exceeds_limit(self, new: ServedModel[Any, Any], others_bytes: int) -> bool:
        return 0 < self.max_weights_bytes < new.info.weights_bytes + others_bytes

    def _remove(self, entry: ModelEntry) -> None:
        self.entries.remove(entry)
        self._assign_ids()
        if entry.model is not None:
            self._close_later(entry.model)

    def _close_later(self, model: ServedModel[Any, Any]) -> None:
        """Close a model that can no longer be found, after its last request."""
        closing = asyncio.create_task(model.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _touch(self, entry: ModelEntry) -> None:
        self._num_uses += 1
        entry.last_used = self._num_uses

    def _assign_ids(self) -> None:
        """Give each entry and its model an id of its own; called when entries, sources or models have changed."""
        names = [entry.source.public_id for entry in self.entries]
        for entry, name in zip(self.entries, names, strict=True):
            entry.model_id = entry.source.qualified_id if names.count(name) > 1 else name
            if entry.model is not None:
                entry.model.model_id = entry.model_id

    def _entry_of(self, model_id: str | None, commit: str | None = None) -> ModelEntry:
        if model_id is None:
            return self._default_entry()
        entries = [entry for entry in self.entries if entry.has_id(model_id)]
        if commit is not None and entries:
            at_commit = [entry for entry in entries if entry.is_at(commit)]
            loading = [entry for entry in entries if entry.model is None]
            if not at_commit and not loading:
                raise ModelNotLoaded(
                    f"{entry.model_id} at {entry.model.info.revision}" for entry in entries if entry.model
                )
            # Two branches may be at one commit: their answers are the same.
            return (at_commit or loading)[0]
        if not entries:
            raise ModelNotLoaded(entry.model_id for entry in self.entries)
        if len(entries) > 1:
            raise InvalidRequest(
                "Several revisions of this model are served; name one.", hint=f"Its ids are {_ids_of(entries)}."
            )
        return entries[0]

    def _default_entry(self) -> ModelEntry:
        # A model that is being loaded beside others takes no requests away from them.
        is_starting = not self.loaded.is_set()
        entries = [entry for entry in self.entries if is_starting or entry.state != "loading"]
        if self._default_id is not None:
            named = [entry for entry in self.entries if entry.source.public_id == self._default_id]
            if not named:
                raise ModelNotLoaded((entry.model_id for entry in entries), default_id=self._default_id)
            entries = named
        elif not entries:
            raise ModelNotLoaded([])
        if len(entries) > 1:
            raise InvalidRequest(
                "Several models are served; name one.", hint=f"Add ?model= with one of: {_ids_of(entries)}."
            )
        return entries[0]

    def _entry_to_replace(self, source: ModelSource) -> ModelEntry | None:
        entries = [entry for entry in self.entries if entry.source.public_id == source.public_id]
        same = [entry for entry in entries if entry.source.branch == source.branch]
        if same or len(entries) == 1:
            return (same or entries)[0]
        return None

    @staticmethod
    def _model_of(entry: ModelEntry) -> ServedModel[Any, Any]:
        if entry.model is None:
            raise NotReady("The model is still loading.", retry_after_s=2)
        return entry.model


def _ids_of(entries: Sequence[ModelEntry]) -> str:
    return ", ".join(entry.model_id for entry in entries)
