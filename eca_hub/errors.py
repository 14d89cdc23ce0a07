"""What can go wrong, as a tree.

    EcaHubError
     |- InvalidConfig          a value that the user gave cannot work
     |- UnknownName            an architecture, attention or label nobody knows; carries close matches
     |- InvalidUsage           a command was typed with options it does not take
     |- CheckpointMismatch     weights do not fit the network
     |- HubError
     |   |- RepoNotFound       no such repository, or private and no token
     |   |- RevisionNotFound   the repository has no such branch, tag or commit
     |   |- NotAnEcaModel      the three files of a package are not there, or are not ours
     |   |- ChecksumMismatch   bytes differ from what the hub announced
     |   |- AccessDenied       the hub refused the token
     |   |- PushConflict       somebody else published in between
     |   `- Offline            the hub does not answer
     `- BadImage
         |- NotAnImage         bytes that are no picture, or a broken one
         |- TooLarge           more bytes than allowed
         `- TooManyPixels      more pixels, or a longer side, than allowed

Every class has a `code`, which the service sends to its callers and maps to an HTTP status. A message says what
happened, with the value that was given, and what is allowed; the hint says what to type next. Knows nothing of HTTP or
torch.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EcaHubError(Exception):
    """A mistake that the user can mend; anything else is a bug.

    Args:
        message: What happened, with the value that was given, and what is allowed.
        hint: What to type next.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2
    """Of a command that it ends: 2 is the user's mistake, 1 an accident."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidConfig(EcaHubError):
    """A value that the user gave cannot work."""

    code = "invalid_config"


class UnknownName(EcaHubError):
    """A name that nobody knows, with the closest ones that somebody does."""

    code = "unknown_name"

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], *, listing: str) -> "UnknownName":
        """Build the sentence: no `kind` `name`, did you mean ..., all names: `listing`."""
        spelled = {each.casefold(): each for each in known}
        close = [spelled[match] for match in difflib.get_close_matches(name.casefold(), spelled, n=3, cutoff=0.6)]
        suggestion = f"Did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
        return cls(f"There is no {kind} {name!r}.", hint=f"{suggestion}All names: {listing}")


class InvalidUsage(EcaHubError):
    """A command was typed with options or values that it does not take."""

    code = "invalid_usage"


class CheckpointMismatch(EcaHubError):
    """Weights do not fit the network; names the first few that do not."""

    code = "checkpoint_mismatch"


class HubError(EcaHubError):
    """The hub, or a repository on it, did not give what was asked."""

    code = "hub_error"


class RepoNotFound(HubError):
    """No such repository, or a private one and no token that may read it."""

    code = "repo_not_found"


class RevisionNotFound(HubError):
    """The repository has no such branch, tag or commit."""

    code = "revision_not_found"


class NotAnEcaModel(HubError):
    """A repository or folder that is not a package of ours."""

    code = "not_an_eca_model"


class ChecksumMismatch(HubError):
    """Bytes that differ from what the hub announced."""

    code = "checksum_mismatch"


class AccessDenied(HubError):
    """The hub knows the repository but refuses this token."""

    code = "access_denied"


class PushConflict(HubError):
    """The branch moved between reading it and publishing to it."""

    code = "push_conflict"


class Offline(HubError):
    """The hub does not answer, and the cache does not hold what was asked."""

    code = "offline"


class BadImage(EcaHubError):
    """A picture that cannot be classified."""

    code = "bad_image"


class NotAnImage(BadImage):
    """Bytes that are no picture in an allowed format, or a broken one."""

    code = "not_an_image"


class TooLarge(BadImage):
    """More bytes than allowed."""

    code = "too_large"


class TooManyPixels(BadImage):
    """More pixels, a longer side or more scans than allowed."""

    code = "too_many_pixels"
