"""The hub client's words in ours: which names it takes, and what its refusals mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from eca_hub.errors import (
    AccessDenied,
    EcaHubError,
    HubError,
    InvalidConfig,
    NotAnEcaModel,
    Offline,
    PushConflict,
    RepoNotFound,
    RevisionNotFound,
)


def check_model_id(model_id: str) -> None:
    """Refuse what cannot be the name of a repository before anybody is asked.

    Raises:
        InvalidConfig: it is not OWNER/NAME.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", model_id, re.ASCII):
        raise InvalidConfig(
            f"{model_id!r} is neither a folder nor OWNER/NAME.",
            hint="Names are letters, digits, '.', '_' and '-', as in acme/eca_resnet50.",
        )


def check_revision(revision: str) -> None:
    """Refuse what cannot name a branch, a tag or a commit, and would climb out of the client's cache.

    Raises:
        InvalidConfig: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]{0,255}", revision, re.ASCII) or ".." in revision or "//" in revision:
        raise InvalidConfig(f"{revision!r} cannot be a revision.", hint="Give a branch, a tag or a commit.")


def is_commit(revision: str) -> bool:
    """Whether this is the full id of a commit, which no branch may be called."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@contextmanager
def hub_errors(model_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into our tree of errors.

    The client reads answers without looking whether they make sense, so with a hub that talks nonsense it fails in the
    ways of a program with a mistake; inside this block there is nothing but the client.
    """
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, *_CONFUSED) as error:
        raise _in_our_words(error, model_id, revision or "main") from None


_CONFUSED = (ValueError, LookupError, TypeError, RuntimeError)


def _in_our_words(error: BaseException, model_id: str, revision: str) -> EcaHubError:
    match error:
        case GatedRepoError():
            return AccessDenied(
                f"{model_id} is open to those only whom its owner let in.", hint="Ask on its page, and set HF_TOKEN."
            )
        case RepositoryNotFoundError():
            return RepoNotFound(
                f"The hub shows no repository {model_id!r}: it does not exist, or is private.",
                hint="If it is private, set HF_TOKEN.",
            )
        case RevisionNotFoundError():
            return RevisionNotFound(f"{model_id} has no branch, tag or commit {revision!r}.")
        case LocalEntryNotFoundError() | ValueError() | RuntimeError() if error.__cause__ is not None:
            # The client found nothing in its cache either, or gave up; what stopped it is the reason.
            return _in_our_words(error.__cause__, model_id, revision)
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() | IncompleteSnapshotError() | httpx2.TransportError():
            return Offline(
                f"The hub does not answer, and the cache does not hold {model_id} at {revision}: {_line(error)}",
                hint="HF_ENDPOINT names the hub, HF_HUB_OFFLINE=1 forbids asking it.",
            )
        case EntryNotFoundError():
            return NotAnEcaModel(f"{model_id} is no package: {_line(error)}")
        case HFValidationError():
            return InvalidConfig(_line(error))
        case HfHubHTTPError():
            return _refusal(error, model_id)
        case OSError() if error.errno is not None:
            return HubError(
                f"{error.filename or 'The cache'} cannot be used: {error.strerror}.",
                hint="HF_HOME names the folder of the cache; it needs room and the right to write.",
            )
    return HubError(
        f"What answers for {model_id} does not speak as a hub does: {_line(error)}",
        hint="HF_ENDPOINT names the hub; a proxy or a login page may stand before it.",
    )


def status_of(error: HfHubHTTPError) -> int | None:
    """Return the HTTP status of a refusal, None when there was no answer."""
    return None if error.response is None else error.response.status_code


def _refusal(error: HfHubHTTPError, model_id: str) -> HubError:
    status = status_of(error)
    if status in (401, 403):
        return AccessDenied(
            f"The hub refused {model_id} ({status}): {_line(error)}", hint="Set HF_TOKEN to a key that may do this."
        )
    if status == 412:
        return PushConflict(
            f"Somebody else published to {model_id} in between; nothing of yours was written.",
            hint="Look at what is there, and push again to publish on top of it.",
        )
    if status == 409:
        return PushConflict(
            f"The hub is busy with another commit to {model_id}; nothing of yours was written.", hint="Push again."
        )
    if status in (408, 429) or (status is not None and status >= 500):
        return Offline(f"The hub answered {status} for {model_id}: {_line(error)}", hint="Try again later.")
    return HubError(f"The hub answered {status} for {model_id}: {_line(error)}")


def _line(error: BaseException) -> str:
    """The first line of what the client says; the rest are addresses and request ids."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
