"""Model id -> running model: what is asked for, what is loading, what answers, what makes room.

A entry is `loading`, then `ready` or `failed`; a ready one is `updating` while another commit is loaded beside it. The
old model answers until the new one can, and is freed when the last request that uses it has its answer: no request is
lost to a swap. Knows how to find, start and replace models, not how one is made: `open_model` does that.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eca_hub import EcaHubError
from eca_service.errors import Busy, InsufficientMemory, InvalidRequest, ModelNotLoaded, NotReady
from eca_service.inference.model import ServedModel

State = Literal["loading", "ready", "updating", "failed"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: `owner/name`, `owner/name@revision` or a folder."""

    id_or_folder: str
    """Hub `owner/name`, or the path of a folder."""
    revision: str | None = None
    """Branch, tag or commit."""

    @classmethod
    def parse(cls, text: str) -> "ModelSource":
        """Read what stands after `--model`."""
        if Path(text).is_dir():
            return cls(text)
        name, _, revision = text.partition("@")
        return cls(name, revision or None)


@dataclass
class ModelEntry:
    """One model that was asked for."""

    source: ModelSource
    """Where it comes from."""
    state: State = "loading"
    """Whether it answers."""
    model: ServedModel[Any, Any] | None = None
    """It, once it is ready."""
    error: Exception | None = field(default=None, repr=False)
    """Why it is not, when it failed."""
    last_used: int = 0
    """When it was used last, counted in uses of any model."""

    @property
    def model_id(self) -> str:
        """What callers call it."""
        return self.model.info.model_id if self.model else self.source.id_or_folder

    @property
    def is_changing(self) -> bool:
        """Whether something is being loaded for it."""
        return self.state in ("loading", "updating")


# What passes when the hub comes up, or when somebody publishes the model.
_TRANSIENT_ERRORS = frozenset(["offline", "hub_error", "repo_not_found", "revision_not_found", "not_an_eca_model"])
_RETRY_S = 2.0

OpenModel = Callable[[ModelSource], Awaitable[ServedModel[Any, Any]]]
"""Loads, checks and warms one; returns when it can answer."""


class Registry:
    """All models of this process.

    Args:
        sources: What to load at the start.
        open_model: Makes one.
        max_weights_bytes: Bound on the weights of all models together; 0 means none. Whoever was used least recently
            makes room for a model that is loaded later.
        patience_s: How long a model of the start that the hub does not have yet is asked for again.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        open_model: OpenModel,
        *,
        max_weights_bytes: int = 0,
        patience_s: float = 0.0,
    ) -> None:
        self.entries = [ModelEntry(source) for source in sources]
        self.loaded = asyncio.Event()
        """Set when every model of the start is ready or failed."""
        self.is_draining = False
        """Set when the process is about to end."""
        self.max_weights_bytes = max_weights_bytes
        self._open_model = open_model
        self._patience_s = patience_s
        self._one_at_a_time = asyncio.Lock()
        self._num_uses = 0
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether there are models, and every one of the start and all their engines answer."""
        started = [
            entry for entry in self.entries if entry.model is not None or entry.error or not self.loaded.is_set()
        ]
        return bool(started) and all(entry.model is not None and entry.model.is_healthy for entry in started)

    @property
    def failure(self) -> Exception | None:
        """Why a model of the start did not load, the first one."""
        return next((entry.error for entry in self.entries if entry.error), None)

    @property
    def weights_bytes(self) -> int:
        """Size of the weights that are held for answering."""
        return sum(entry.model.info.weights_bytes for entry in self.entries if entry.model)

    def pending(self) -> list[str]:
        """Ids of the models that do not answer, each with why."""
        return [
            f"{entry.model_id}: {entry.state if entry.model is None else 'an engine does not answer'}"
            for entry in self.entries
            if entry.model is None or not entry.model.is_healthy
        ]

    def find(self, model_id: str | None) -> ServedModel[Any, Any]:
        """Return the model of that id; None means the only one. Whoever awaits before using it needs `acquire`.

        Raises:
            ModelNotLoaded: no such model runs.
            NotReady: it is still loading.
            InvalidRequest: no id was given and there are several models.
        """
        return self._model_in(self._entry_of(model_id))

    @contextmanager
    def acquire(self, model_id: str | None) -> Iterator[ServedModel[Any, Any]]:
        """Find a model and keep it from being freed until the block ends, whatever takes its place meanwhile.

        Raises:
            ModelNotLoaded: no such model runs.
            NotReady: it is still loading.
            InvalidRequest: no id was given and there are several models.
        """
        entry = self._entry_of(model_id)
        model = self._model_in(entry)
        self._num_uses += 1
        entry.last_used = self._num_uses
        with model.hold():
            yield model

    async def load_all(self) -> None:
        """Load one model of the start after the other; a failure is kept in its entry."""
        until_s = asyncio.get_running_loop().time() + self._patience_s
        for entry in list(self.entries):
            async with self._one_at_a_time:
                try:
                    model = await self._open_patiently(entry.source, until_s)
                    self._check_room(model, self.weights_bytes)
                    entry.model, entry.state = model, "ready"
                    _logger.info("%s at %s is ready", entry.model_id, model.info.revision)
                except Exception as error:
                    entry.state, entry.error = "failed", error
                    if not isinstance(error, EcaHubError):
                        _logger.exception("loading %s failed", entry.source.id_or_folder)
        self.loaded.set()

    async def load(self, source: ModelSource, *, revision: str | None = None) -> ModelEntry:
        """Load a model, or another revision of one that runs; who runs goes on until the new one answers.

        Args:
            source: Which one, and what it follows from now on.
            revision: The commit to load, when the source's revision is a name that was looked up already.

        Raises:
            Busy: it is being loaded already.
            NotReady: the process is about to end.
            InsufficientMemory: it is larger than the bound on all models together.
            EcaHubError: it cannot be had, or is not what it should be; what ran before runs on.
        """
        if self.is_draining:
            raise NotReady("The service is shutting down.", retry_after_s=5)
        entry = next((entry for entry in self.entries if entry.model_id == source.id_or_folder), None)
        if entry is None:
            entry = ModelEntry(source)
            self.entries.append(entry)
        elif entry.is_changing:
            raise Busy("This model is being loaded already.")
        else:
            entry.state = "updating" if entry.model else "loading"
        return await self._load_into(entry, source, revision)

    async def unload(self, model_id: str) -> None:
        """Stop to answer for a model; what has been accepted is still answered.

        Raises:
            ModelNotLoaded: no such model runs.
            Busy: it is being loaded.
        """
        entry = self._entry_of(model_id)
        if entry.is_changing:
            raise Busy("This model is being loaded.")
        self._remove(entry)

    async def close(self) -> None:
        """Answer what is in the house, then free every model."""
        for entry in self.entries:
            if entry.model is not None:
                await entry.model.close()
        await asyncio.gather(*self._leaving)

    async def _load_into(self, entry: ModelEntry, source: ModelSource, revision: str | None) -> ModelEntry:
        old = entry.model
        try:
            async with self._one_at_a_time:
                new = await self._open_model(ModelSource(source.id_or_folder, revision or source.revision))
                self._evict_lru(entry, new)
        except BaseException:
            if old is None:
                self.entries.remove(entry)
            else:
                entry.state = "ready"
            raise
        entry.source, entry.model, entry.state, entry.error = source, new, "ready", None
        self._num_uses += 1
        entry.last_used = self._num_uses
        _logger.info("%s at %s is ready", entry.model_id, new.info.revision)
        if old is not None:
            self._close_later(old)
        return entry

    async def _open_patiently(self, source: ModelSource, until_s: float) -> ServedModel[Any, Any]:
        """Open a model, again and again while the hub may still get it."""
        reason = ""
        while True:
            try:
                return await self._open_model(source)
            except EcaHubError as error:
                if error.code not in _TRANSIENT_ERRORS or asyncio.get_running_loop().time() + _RETRY_S > until_s:
                    raise
                if error.message != reason:
                    reason = error.message
                    _logger.info("%s is not there yet: %s", source.id_or_folder, reason)
            await asyncio.sleep(_RETRY_S)

    def _evict_lru(self, entry: ModelEntry, new: ServedModel[Any, Any]) -> None:
        """Unload who was used least recently, until the new model fits."""
        others = [other for other in self.entries if other is not entry and other.model]
        size = sum(other.model.info.weights_bytes for other in others if other.model)
        leavers = []
        for other in sorted(others, key=lambda other: other.last_used):
            if self._is_too_much(new, size) and other.model and not other.is_changing:
                size -= other.model.info.weights_bytes
                leavers.append(other)
        self._check_room(new, size)
        for other in leavers:
            _logger.info("%s makes room for %s", other.model_id, new.info.model_id)
            self._remove(other)

    def _check_room(self, new: ServedModel[Any, Any], others_bytes: int) -> None:
        if self._is_too_much(new, others_bytes):
            self._close_later(new)
            raise InsufficientMemory(
                f"The model has {new.info.weights_bytes / 2**20:.1f} MiB of weights; beside what cannot leave it may "
                f"have {max(self.max_weights_bytes - others_bytes, 0) / 2**20:.1f} MiB.",
                hint="Raise --max_weights_mib.",
            )

    def _is_too_much(self, new: ServedModel[Any, Any], others_bytes: int) -> bool:
        return 0 < self.max_weights_bytes < new.info.weights_bytes + others_bytes

    def _remove(self, entry: ModelEntry) -> None:
        self.entries.remove(entry)
        if entry.model is not None:
            self._close_later(entry.model)

    def _close_later(self, model: ServedModel[Any, Any]) -> None:
        """Close a model that nobody will find any more, after its last answer."""
        leaving = asyncio.create_task(model.close())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def _entry_of(self, model_id: str | None) -> ModelEntry:
        entries = [entry for entry in self.entries if model_id in (None, entry.model_id)]
        if not entries:
            raise ModelNotLoaded(entry.model_id for entry in self.entries)
        if len(entries) > 1:
            ids = ", ".join(entry.model_id for entry in entries)
            raise InvalidRequest("Several models run here; say which.", hint=f"Add ?model= with one of: {ids}.")
        return entries[0]

    @staticmethod
    def _model_in(entry: ModelEntry) -> ServedModel[Any, Any]:
        if entry.model is None:
            raise NotReady("The model is still loading.", retry_after_s=2)
        return entry.model
