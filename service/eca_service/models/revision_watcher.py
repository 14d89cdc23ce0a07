"""Follow branches: when one moves, load its new commit beside the old one and swap.

A commit that could not be fetched is tried at each poll. One whose bytes were damaged, or whose model does not fit or
does not run, is tried again after 1, 2, 4 and more polls, because each try fetches or loads it: it may have found no
memory. Any other commit is bad for good.
"""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from eca_hub import EcaHubError
from eca_hub.names import MODEL_ID_PATTERN, is_commit
from eca_service.errors import Busy
from eca_service.models.daemon_thread import run_in_daemon_thread
from eca_service.models.registry import ModelEntry, Registry
from eca_service.models.source import ModelSource

FindCommit = Callable[[ModelSource], Awaitable[str]]
"""Resolves a source's revision to the commit that it names now, 40 hexadecimal digits."""

_TRANSIENT_ERRORS = {"offline", "hub_error", "access_denied", "not_ready"}
_MAX_TRIES = {"no_room": math.inf, "checksum_mismatch": math.inf, "unfit_model": 4}
"""Code of an error -> how often a commit that had it is tried."""
_MAX_PAUSE_POLLS = 64
_HUB_TIMEOUT_S = 10.0
_MAX_POLL_S = 30.0

_logger = logging.getLogger(__name__)


@dataclass
class _FailedCommit:
    num_tries: int = 0
    pause_polls: float = 0
    """Polls until the next try."""


async def find_commit_on_hub(source: ModelSource) -> str:
    """Ask the hub which commit a branch or tag names.

    Raises:
        TimeoutError: the hub does not respond.
        Exception: anything that the hub's client raises.
    """

    def ask() -> str:
        from huggingface_hub import HfApi

        info = HfApi().model_info(source.id_or_folder, revision=source.revision or "main", timeout=_HUB_TIMEOUT_S)
        return str(info.sha)

    # The timeout of the hub's client is for each of its reads, and it retries.
    async with asyncio.timeout(_MAX_POLL_S):
        return await run_in_daemon_thread(ask)


class RevisionWatcher:
    """Keeps the served models at the commits of their branches.

    Args:
        registry: The models.
        find_commit: Resolves the revision of a source.
        period_s: Time between two polls.
    """

    def __init__(self, registry: Registry, find_commit: FindCommit, *, period_s: float) -> None:
        self._registry = registry
        self._find_commit = find_commit
        self._period_s = period_s
        self._failed_commits: dict[tuple[str, str], _FailedCommit] = {}

    async def watch(self) -> None:
        """Poll until cancelled."""
        await self._registry.loaded.wait()
        while True:
            await asyncio.sleep(self._period_s)
            await self.poll()

    async def poll(self) -> None:
        """Bring every model that follows a branch to the branch's commit; a failure is logged and changes nothing."""
        for entry in list(self._registry.entries):
            if self._is_served(entry) and follows_a_branch(entry.source):
                try:
                    await self._follow(entry)
                except Exception as error:
                    _logger.warning("%s stays at its revision: %s", entry.model_id, str(error) or type(error).__name__)

    def _is_served(self, entry: ModelEntry) -> bool:
        return entry.state == "ready" and entry in self._registry.entries

    async def _follow(self, entry: ModelEntry) -> None:
        source = entry.source
        commit = await self._find_commit(source)
        # An admin may have unloaded or replaced the model meanwhile.
        is_same = self._is_served(entry) and entry.source is source
        if not is_same or entry.model is None or commit == entry.model.info.revision:
            return
        failed = self._failed_commits.get((entry.model_id, commit), _FailedCommit())
        failed.pause_polls -= 1
        if failed.pause_polls > 0:
            return
        try:
            await self._registry.load(source, revision=commit)
        except Busy:
            return
        except Exception as error:
            code = error.code if isinstance(error, EcaHubError) else ""
            if code not in _TRANSIENT_ERRORS:
                self._failed_commits[entry.model_id, commit] = failed
                failed.num_tries += 1
                is_bad = failed.num_tries >= _MAX_TRIES.get(code, 1)
                failed.pause_polls = math.inf if is_bad else min(2 ** (failed.num_tries - 1), _MAX_PAUSE_POLLS)
            raise


def follows_a_branch(source: ModelSource) -> bool:
    """Whether the source may name another commit later: it is neither a folder nor a commit."""
    is_pinned = source.revision is not None and is_commit(source.revision)
    return not (is_pinned or source.folder_id) and re.fullmatch(MODEL_ID_PATTERN, source.id_or_folder) is not None
