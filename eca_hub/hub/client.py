"""Names of repositories and revisions, and the client's exceptions as ours."""

import difflib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

import httpx2
from huggingface_hub import constants
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
    HubUnavailable,
    InvalidConfig,
    InvalidPackage,
    PushConflict,
    RepoNotFound,
    RevisionNotFound,
)
from eca_hub.loopback import is_loopback
from eca_hub.names import MODEL_ID_PATTERN, is_ref_name, is_revision
from eca_hub.releases import list_releases

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
"""What timm writes before the id of a repository."""


class UnknownHost(OfflineModeIsEnabled):
    """The name of a host was not resolved, inside `limit_requests`.

    An `OfflineModeIsEnabled`, because the client answers that one from its cache and does not retry it; it retries
    a connection error for half a minute.
    """

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host


def parse_model_id(name: str, revision: str | None = None, *, endpoint: str | None = None) -> tuple[str, str | None]:
    """Parse the name of a model in any of its spellings to `owner/name` and a revision.

    Args:
        name: `owner/name`, `owner/name@revision`, `hf-hub:owner/name`, or the address of its page on the hub.
        revision: Branch, tag or commit given apart from the name.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.

    Raises:
        InvalidConfig: it is none of these, an address of another hub, or names two revisions, or the endpoint is no
            string.
    """
    check_endpoint(endpoint)
    model_id = name.strip()
    for prefix in HUB_PREFIXES:
        model_id = model_id.removeprefix(prefix)
    in_name = None
    if "://" in model_id:
        model_id, in_name = _parse_page(model_id, (endpoint or constants.ENDPOINT).rstrip("/"))
    elif "@" in model_id:
        model_id, _, in_name = model_id.partition("@")
    check_model_id(model_id)
    if in_name is not None and revision not in (None, in_name):
        raise InvalidConfig(f"{name} names revision {in_name!r}, but {revision!r} is given too.", hint="Give one.")
    chosen = revision if in_name is None else in_name
    if chosen is not None:
        check_revision(chosen)
    return model_id, chosen


def _parse_page(address: str, endpoint: str) -> tuple[str, str | None]:
    """Split the address of a model's page, or of a revision or file of it, on the hub at `endpoint`."""
    public_hub = constants.HUGGINGFACE_CO_URL_HOME.rstrip("/")
    bases = [endpoint, *(["https://hf.co"] if public_hub == endpoint else [])]
    base = next((each for each in bases if address.startswith(f"{each}/")), None)
    if base is None:
        raise InvalidConfig(
            f"{address!r} is not an address of the hub at {endpoint}.",
            hint="Give OWNER/NAME; HF_ENDPOINT names the hub.",
        )
    path = address.removeprefix(base).partition("?")[0].partition("#")[0]
    owner, name, *rest = [*path.strip("/").split("/"), "", ""]
    if owner in ("datasets", "spaces"):
        raise InvalidConfig(f"{address!r} is the address of one of the hub's {owner}, not of a model.")
    is_revision = len(rest) > 2 and rest[0] in ("tree", "blob", "resolve", "commit")
    # The slash of a branch such as feature/x is %2F there.
    return f"{owner}/{name}", unquote(rest[1]) if is_revision else None


def check_endpoint(endpoint: str | None) -> None:
    """Check that an endpoint can be the address of a hub.

    Raises:
        InvalidConfig: it is no string.
    """
    if not isinstance(endpoint, str | None):
        raise InvalidConfig(f"endpoint is {endpoint!r}; it must be the address of a hub.")


def check_model_id(model_id: str) -> None:
    """Check that a name can be a repository, before a request is made.

    Raises:
        InvalidConfig: it is not OWNER/NAME.
    """
    if not re.fullmatch(MODEL_ID_PATTERN, model_id):
        if model_id in list_releases():
            raise InvalidConfig(
                f"{model_id!r} is part of eca-hub and not OWNER/NAME of a model on a hub.",
                hint=f"It needs no download. To publish it: eca-hub push --release {model_id} OWNER/NAME",
            )
        close = difflib.get_close_matches(model_id, list_releases(), n=1)
        raise InvalidConfig(
            f"{model_id!r} is neither a folder nor OWNER/NAME.",
            hint=f"Did you mean {close[0]}?"
            if close
            else "Names are letters, digits, '.', '_' and '-', as in acme/eca_resnet50.",
        )


def check_revision(revision: str) -> None:
    """Check that a name can be a branch, a tag or a commit, and does not leave the folder of the client's cache.

    Raises:
        InvalidConfig: it cannot.
    """
    if not isinstance(revision, str):
        raise InvalidConfig(f"revision is {revision!r}; it must be a string.", hint="Give a branch, a tag or a commit.")
    if not is_revision(revision):
        raise InvalidConfig(f"{revision!r} cannot be a revision.", hint="Give a branch, a tag or a commit.")


def check_new_ref(kind: str, name: str) -> None:
    """Check that a branch or a tag can get this name, by the rules of git that hubs apply, before anything is sent.

    Args:
        kind: `branch` or `tag`, for the message.
        name: The new name.

    Raises:
        InvalidConfig: it cannot.
    """
    check_revision(name)
    if not is_ref_name(name):
        raise InvalidConfig(
            f"{name!r} cannot be a {kind}: no part of it may end with '.lock', and names like refs/... and 40 "
            "hexadecimal digits are reserved.",
            hint=f"Give another --{kind}.",
        )


def clean_token(token: str | None) -> str | None:
    """Remove white space around a token, as the client does for HF_TOKEN; nothing else is no token."""
    return (token.strip() or None) if isinstance(token, str) else token


def is_on_this_machine(endpoint: str) -> bool:
    """Return whether the host in the URL of a hub is this machine."""
    return is_loopback(urlsplit(endpoint).hostname or "")


@contextmanager
def hub_errors(model_id: str, revision: str | None = None, *, is_push: bool = False) -> Iterator[None]:
    """Translate the client's exceptions inside the block into our error classes.

    The client does not validate responses: a malformed one makes it raise ValueError, KeyError and the like. Only calls
    of the client belong inside the block.

    Args:
        model_id: Hub `owner/name`.
        revision: Branch, tag or commit; the main branch when none is given.
        is_push: Whether the calls publish, which the client's cache has no part in.
    """
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, *_MALFORMED_RESPONSE_ERRORS) as error:
        raise _translate(error, model_id, revision or "main", is_push=is_push) from None
    except ImportError as error:
        if "socksio" not in str(error):
            raise
        raise InvalidConfig(
            "The environment names a SOCKS proxy, and the package for SOCKS proxies is not installed.",
            hint="pip install 'httpx2[socks]', or unset ALL_PROXY.",
        ) from None


_MALFORMED_RESPONSE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def _translate(error: BaseException, model_id: str, revision: str, *, is_push: bool) -> EcaHubError:
    match error:
        case EcaHubError():
            # One of `limit_requests`, which the client has raised again as the cause of an error of its own.
            return error
        case GatedRepoError():
            return AccessDenied(
                f"{model_id} is gated, and its owner has not granted access to this token.",
                hint="Request access on its page, and set HF_TOKEN.",
            )
        case RepositoryNotFoundError():
            return RepoNotFound(
                f"There is no repository {model_id!r} on the hub, or it is private.",
                hint=f"If it is private, set HF_TOKEN{'' if is_push else '; if you mean a folder, check its path'}.",
            )
        case RevisionNotFoundError():
            return RevisionNotFound(f"{model_id} has no branch, tag or commit {revision!r}.")
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() | ValueError() | RuntimeError() if error.__cause__:
            # The client found nothing in its cache either; the cause of this error is the reason.
            return _translate(error.__cause__, model_id, revision, is_push=is_push)
        # With a proxy the name may be that of the proxy.
        case UnknownHost() | httpx2.ConnectError() if (host := _unknown_host(error)) and getproxies().keys() <= {"no"}:
            without = "" if is_push else f", and the cache does not hold {model_id} at {revision}"
            return HubUnavailable(
                f"The host {host} is not known{without}.",
                hint=f"HF_ENDPOINT names the hub; now it is {constants.ENDPOINT}.",
            )
        case httpx2.LocalProtocolError() if "Bearer" in str(error):
            # It shows the whole header.
            return _not_a_token()
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() | IncompleteSnapshotError() | httpx2.TransportError():
            without = "" if is_push else f", and the cache does not hold {model_id} at {revision}"
            return HubUnavailable(
                f"The hub does not respond{without}: {_first_line(error).rstrip('.')}.",
                hint="HF_ENDPOINT names the hub, HF_HUB_OFFLINE=1 forbids requests to it.",
            )
        case EntryNotFoundError():
            return InvalidPackage(f"{model_id} is not a package: {_first_line(error)}")
        case UnicodeEncodeError():
            # Names of repositories and revisions are ASCII by our own check, so it is the token.
            return _not_a_token()
        case HFValidationError():
            return InvalidConfig(_first_line(error))
        case HfHubHTTPError():
            return _refusal(error, model_id)
        case OSError() if error.errno is not None and str(error.filename) == constants.HF_TOKEN_PATH:
            return HubError(
                f"{error.filename}, the token file of the hub's client, cannot be read: {error.strerror}.",
                hint="Make it readable for this user, or set HF_TOKEN.",
            )
        case OSError() if error.errno is not None and is_push:
            return HubError(f"{error.filename or 'A file'} cannot be used: {error.strerror}.")
        case OSError() if error.errno is not None:
            return HubError(
                f"{error.filename or 'The cache'} cannot be used: {error.strerror}.",
                hint="HF_HOME names the folder of the cache; it needs room and the right to write.",
            )
    return HubError(
        f"The response for {model_id} is not one of a hub: {_first_line(error)}",
        hint="HF_ENDPOINT names the hub; a proxy or a login page may have responded instead.",
    )


def _unknown_host(error: UnknownHost | httpx2.ConnectError) -> str | None:
    """Return the host whose name was not resolved, if the connection failed for that."""
    if isinstance(error, UnknownHost):
        return error.host
    # Not `__cause__` alone: the connection pool raises its errors `from None`.
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, socket.gaierror):
        reason = reason.__cause__ or reason.__context__
    return error.request.url.host if reason else None


def _not_a_token() -> AccessDenied:
    return AccessDenied(
        "The token has a character that no token has.", hint="Set HF_TOKEN to a key as the hub shows it."
    )


def status_of(error: HfHubHTTPError) -> int | None:
    """Return the HTTP status of an error response, None when there was no response."""
    return None if error.response is None else error.response.status_code


def _refusal(error: HfHubHTTPError, model_id: str) -> HubError:
    status, reason = status_of(error), _reason(error)
    if status in (401, 403):
        return AccessDenied(
            f"The hub refused {model_id} ({status}): {reason}.",
            hint="Set HF_TOKEN to a key that may do this.",
        )
    if status == 412:
        return PushConflict(
            f"Another commit to {model_id} was published in between; nothing was written.",
            hint="Look at it, and push again to publish on top of it.",
        )
    if status == 409:
        return PushConflict(
            f"The hub is busy with another commit to {model_id}; nothing was written.", hint="Push again."
        )
    if status in (408, 429) or (status is not None and status >= 500):
        return HubUnavailable(f"The hub responded with {status} for {model_id}: {reason}.", hint="Try again later.")
    return HubError(f"The hub responded with {status} for {model_id}: {reason}.")


def _reason(error: HfHubHTTPError) -> str:
    """Return the sentence that the hub sent, else the client's, without control characters and not too long."""
    sentence = " ".join((error.server_message or _first_line(error)).split())
    return "".join(char for char in sentence if char.isprintable())[:300].rstrip(".")


def _first_line(error: BaseException) -> str:
    """Return the first line of the client's message; the others are addresses and request ids."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
