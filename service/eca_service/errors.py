"""Every refusal of the service as a class with a code, and the HTTP status of every code, the library's included.

    EcaHubError
     |- BadSetting           a setting that cannot work; stops the start
     |- InvalidRequest       a field, parameter or part that does not fit
     |- BadJson              a body that is not JSON
     |- BadMultipart         a form that is not whole or not well-formed
     |- BodyTooLarge         more bytes than allowed
     |- BodyTimeout          the body did not arrive in time
     |- UnsupportedType      neither picture, form nor JSON
     |- Unauthorized         no key, or an unknown one
     |- Forbidden            a key that may not do this
     |- NotEnabled           a part of the service that the operator has not switched on
     |- RepoNotAllowed       a repository that may not be loaded here
     |- ModelNotLoaded       no running model of that name
     |- Busy                 the model is being loaded already
     |- InsufficientMemory               the model is larger than all models together may be
     |- UnfitModel           the model gives answers that are no numbers
     |- Overloaded           the house is full: come back in `retry_after_s`
     |- NotReady             starting or draining: come back in `retry_after_s`
     |- WorkerLost           the engine died or hung under this picture
     |- DeadlineExceeded     no answer within the deadline
     `- EngineFailed         the network cannot answer for this picture: our fault

Knows nothing of requests and responses: `answers` builds those.
"""

from collections.abc import Iterable

from eca_hub import EcaHubError

STATUS_OF = {
    # A request that cannot be answered.
    "bad_http": 400,
    "bad_json": 400,
    "bad_multipart": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "access_denied": 403,
    "repo_not_allowed": 403,
    "not_found": 404,
    "model_not_loaded": 404,
    "repo_not_found": 404,
    "revision_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "push_conflict": 409,
    "busy": 409,
    "no_room": 409,
    "too_large": 413,
    "unsupported_type": 415,
    "head_too_large": 431,
    "invalid_request": 422,
    "invalid_config": 422,
    "invalid_usage": 422,
    "unknown_name": 422,
    "bad_image": 422,
    "not_an_image": 422,
    "too_many_pixels": 422,
    "not_an_eca_model": 422,
    "checkpoint_mismatch": 422,
    "unfit_model": 422,
    # A request that could be answered at another time.
    "overloaded": 429,
    "not_ready": 503,
    "worker_lost": 503,
    "deadline_exceeded": 504,
    # The hub behind us.
    "hub_error": 502,
    "checksum_mismatch": 502,
    "offline": 502,
    # Ours: nothing that a client sends leads here.
    "error": 500,
    "bad_setting": 500,
    "missing_extra": 500,
    "engine_failed": 500,
    "internal": 500,
}
"""Code of an error -> HTTP status."""


class BadSetting(EcaHubError):
    """A setting that cannot work; stops the start."""

    code = "bad_setting"


class InvalidRequest(EcaHubError):
    """A field, parameter or part that does not fit."""

    code = "invalid_request"


class BadJson(EcaHubError):
    """A body that is not JSON."""

    code = "bad_json"


class BadMultipart(EcaHubError):
    """A form that is not whole or not well-formed."""

    code = "bad_multipart"


class BodyTooLarge(EcaHubError):
    """More bytes than allowed."""

    code = "too_large"


class BodyTimeout(EcaHubError):
    """The body did not arrive in time."""

    code = "body_timeout"


class UnsupportedType(EcaHubError):
    """A body that is neither picture, form nor JSON."""

    code = "unsupported_type"


class Unauthorized(EcaHubError):
    """No key, or one that nobody knows."""

    code = "unauthorized"


class Forbidden(EcaHubError):
    """A key that may not do this."""

    code = "forbidden"


class NotEnabled(EcaHubError):
    """A part of the service that the operator has not switched on."""

    code = "not_found"


class RepoNotAllowed(EcaHubError):
    """A repository that may not be loaded while the service runs."""

    code = "repo_not_allowed"


class Busy(EcaHubError):
    """The model is being loaded already."""

    code = "busy"


class InsufficientMemory(EcaHubError):
    """The model is larger than all models together may be."""

    code = "no_room"


class UnfitModel(EcaHubError):
    """The model gives answers that are no numbers."""

    code = "unfit_model"


class ModelNotLoaded(EcaHubError):
    """No running model has the name that was asked for.

    Args:
        running: Ids of the models that do run.
    """

    code = "model_not_loaded"

    def __init__(self, running: Iterable[str]) -> None:
        super().__init__("No running model has this id.", hint=f"Running: {', '.join(sorted(running)) or 'none'}.")


class TryLater(EcaHubError):
    """A refusal that passes.

    Args:
        message: Why.
        retry_after_s: When it is worth asking again.
    """

    code = "not_ready"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, hint=f"Ask again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class Overloaded(TryLater):
    """The house is full."""

    code = "overloaded"


class NotReady(TryLater):
    """Starting, loading or draining."""

    code = "not_ready"


class WorkerLost(TryLater):
    """The engine died or hung while it worked on this picture."""

    code = "worker_lost"


class DeadlineExceeded(EcaHubError):
    """No answer within the deadline."""

    code = "deadline_exceeded"


class EngineFailed(EcaHubError):
    """The network cannot answer for this picture, though it was decoded: a fault of the model or of this program."""

    code = "engine_failed"
