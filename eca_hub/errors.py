"""The error classes, as a tree.

    EcaHubError
     |- InvalidConfig          a value that cannot work
     |- UnknownName            an unknown architecture, attention or label; carries close matches
     |- InvalidUsage           a command was typed with options or values that it does not take
     |- CheckpointMismatch     weights do not fit the network
     |- NonFiniteScores        outputs of the network are NaN or infinite
     |- HubError
     |   |- RepoNotFound       no such repository, or a private one and no token
     |   |- RevisionNotFound   the repository has no such branch, tag or commit
     |   |- InvalidPackage     the files of a package are absent or cannot be used
     |   |- ChecksumMismatch   bytes differ from what the hub announced
     |   |- AccessDenied       the hub refused the token
     |   |- PushConflict       the branch moved between reading it and publishing to it
     |   `- HubUnavailable     the hub does not respond
     `- BadImage
         |- NotAnImage         the bytes are no image, or a broken one
         |- TooLarge           more bytes than allowed
         `- TooManyPixels      more pixels, or a longer side, than allowed

Every class has a `code`, which the service sends to its clients and maps to an HTTP status. The message says what was
wrong, with the value given and the allowed values; the hint says what to type.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EcaHubError(Exception):
    """A mistake that the user can correct; any other exception is a bug.

    Args:
        message: What was wrong, with the value given, and what is allowed.
        hint: What to type next.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2
    """Exit code of a command that ends with this error: 2 for the user's mistake, 1 for a failure."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidConfig(EcaHubError):
    """A value that cannot work."""

    code = "invalid_config"


class UnknownName(EcaHubError):
    """An unknown name, with the closest known ones."""

    code = "unknown_name"

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], *, listing: str) -> "UnknownName":
        """Build the message: no `kind` `name`, did you mean ..., all names: `listing`."""
        spelled = {each.casefold(): each for each in known}
        close = [spelled[match] for match in difflib.get_close_matches(str(name).casefold(), spelled, n=3, cutoff=0.6)]
        suggestion = f"Did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
        return cls(f"There is no {kind} {name!r}.", hint=f"{suggestion}All names: {listing}")


class InvalidUsage(EcaHubError):
    """A command was typed with options or values that it does not take."""

    code = "invalid_usage"


class CheckpointMismatch(EcaHubError):
    """Weights do not fit the network; the message names the first few."""

    code = "checkpoint_mismatch"


class NonFiniteScores(EcaHubError):
    """Outputs of the network are NaN or infinite: its weights are damaged, or those of another architecture."""

    code = "unfit_model"


class HubError(EcaHubError):
    """The hub, or a repository on it, did not return what was requested."""

    code = "hub_error"


class RepoNotFound(HubError):
    """No such repository, or a private one and no token that may read it."""

    code = "repo_not_found"


class RevisionNotFound(HubError):
    """The repository has no such branch, tag or commit."""

    code = "revision_not_found"


class InvalidPackage(HubError):
    """A repository or folder that is not a package, or holds values that cannot be used."""

    code = "not_an_eca_model"


class ChecksumMismatch(HubError):
    """Bytes that differ from what the hub announced."""

    code = "checksum_mismatch"


class AccessDenied(HubError):
    """The hub knows the repository but refuses this token."""

    code = "access_denied"


class PushConflict(HubError):
    """The branch moved between reading it and publishing to it, or a tag is taken."""

    code = "push_conflict"


class HubUnavailable(HubError):
    """The hub does not respond, and the cache does not hold what was requested."""

    code = "offline"


class BadImage(EcaHubError):
    """An image that cannot be classified."""

    code = "bad_image"


class NotAnImage(BadImage):
    """Bytes that are no image in an allowed format, or a broken one."""

    code = "not_an_image"


class TooLarge(BadImage):
    """More bytes than allowed."""

    code = "too_large"


class TooManyPixels(BadImage):
    """More pixels, a longer side or more scans than allowed."""

    code = "too_many_pixels"
