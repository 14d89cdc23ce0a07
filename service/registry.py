"""Model id -> running model: what is asked for, what is loading, what answers.

A slot is `loading`, then `ready` or `failed`. Knows how to find and to start models, not how one is made:
`open_model` does that.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eca_hub import EcaHubError
from service.errors import InvalidRequest, ModelNotLoaded, NotReady
from service.running import RunningModel

State = Literal["loading", "ready", "failed"]

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
class Slot:
    """One model that was asked for."""

    source: ModelSource
    """Where it comes from."""
    state: State = "loading"
    """Whether it answers."""
    model: RunningModel[Any, Any] | None = None
    """It, once it is ready."""
    error: Exception | None = field(default=None, repr=False)
    """Why it is not, when it failed."""

    @property
    def model_id(self) -> str:
        """What callers call it."""
        return self.model.facts.model_id if self.model else self.source.id_or_folder


class Registry:
    """All models of this process.

    Args:
        sources: What to load at the start.
        open_model: Loads, checks and warms one; returns when it can answer.
    """

    def __init__(
        self, sources: Sequence[ModelSource], open_model: Callable[[ModelSource], Awaitable[RunningModel[Any, Any]]]
    ) -> None:
        self.slots = [Slot(source) for source in sources]
        self.loaded = asyncio.Event()
        """Set when every model is ready or failed."""
        self.is_draining = False
        """Set when the process is about to end."""
        self._open_model = open_model

    @property
    def is_ready(self) -> bool:
        """Whether every model answers and its engines are alive."""
        return all(
            slot.state == "ready" and slot.model is not None and slot.model.batcher.is_alive for slot in self.slots
        )

    @property
    def failure(self) -> Exception | None:
        """Why a model did not load, the first one."""
        return next((slot.error for slot in self.slots if slot.error), None)

    def pending(self) -> list[str]:
        """Ids of the models that do not answer, each with its state."""
        return [f"{slot.model_id}: {slot.state}" for slot in self.slots if slot.state != "ready"]

    def find(self, model_id: str | None) -> RunningModel[Any, Any]:
        """Return the model of that id; None means the only one.

        Raises:
            ModelNotLoaded: no such model was asked for at the start.
            NotReady: it is still loading.
            InvalidRequest: no id was given and there are several models.
        """
        slots = [slot for slot in self.slots if model_id in (None, slot.model_id)]
        if not slots:
            raise ModelNotLoaded(slot.model_id for slot in self.slots)
        if len(slots) > 1:
            ids = ", ".join(slot.model_id for slot in slots)
            raise InvalidRequest("Several models run here; say which.", hint=f"Add ?model= with one of: {ids}.")
        if slots[0].model is None:
            raise NotReady("The model is still loading.", retry_after_s=2)
        return slots[0].model

    async def load_all(self) -> None:
        """Load one model after the other; a failure is kept in its slot."""
        for slot in self.slots:
            try:
                slot.model = await self._open_model(slot.source)
                slot.state = "ready"
                _logger.info("%s at %s is ready", slot.model_id, slot.model.facts.revision)
            except Exception as error:
                slot.state, slot.error = "failed", error
                if not isinstance(error, EcaHubError):
                    _logger.exception("loading %s failed", slot.source.id_or_folder)
        self.loaded.set()

    async def close(self) -> None:
        """Answer what is in the house, then free every model."""
        for slot in self.slots:
            if slot.model is not None:
                await slot.model.close()
