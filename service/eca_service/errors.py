"""Every error of the service as a class with a code, and the HTTP status of every code, the library's included.

EcaHubError
|- BadSetting          a setting that is not allowed; stops the startup
|- InvalidRequest      a field, parameter or part that is not allowed
|- BadHost             a Host header that is not allowed
|- HeadersTooLarge     request line and headers beyond the limit
|- BadJson             a body that is not JSON
|- BadMultipart        a malformed or incomplete form
|- BodyTooLarge        more bytes than allowed
|- BodyTimeout         the body did not arrive in time
|- UnsupportedType     neither an image, a form nor JSON
|- Unauthorized        no key, or an unknown one
|- Forbidden           a key without this permission
|- NotEnabled          a feature that the operator has not enabled
|- RepoNotAllowed      a repository that may not be loaded here
|- ModelNotLoaded      no loaded model has this id
|- Busy                the model is being loaded already
|- InsufficientMemory  the model is larger than the limit on all models
|- UnfitModel          the model's outputs are not finite
|- RetryLater          temporary: retry after `retry_after_s`
|   |- Overloaded      too much is in flight
|   |- NotReady        starting or draining
|   `- WorkerLost      the engine died or hung on this batch
|- DeadlineExceeded    no response within the deadline
|- EngineFailed        the network raised for this image: our fault
`- InternalError       an unexpected exception: our fault
"""

from collections.abc import Iterable

from eca_hub import EcaHubError

STATUS_OF = {
    # The request cannot be carried out.
    "bad_http": 400,
    "bad_host": 400,
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
    # The request can be carried out at another time.
    "overloaded": 429,
    "not_ready": 503,
    "worker_lost": 503,
    "deadline_exceeded": 504,
    # The hub behind the service failed.
    "hub_error": 502,
    "checksum_mismatch": 502,
    "offline": 502,
    # Our fault: no request leads here.
    "error": 500,
    "bad_setting": 500,
    "missing_extra": 500,
    "engine_failed": 500,
    "internal": 500,
}
"""Code of an error -> HTTP status."""


class BadSetting(EcaHubError):
    """A setting that is not allowed; stops the startup."""

    code = "bad_setting"


class InvalidRequest(EcaHubError):
    """A field, parameter or part that is not allowed."""

    code = "invalid_request"


class BadHost(EcaHubError):
    """A Host header that is not allowed."""

    code = "bad_host"


class HeadersTooLarge(EcaHubError):
    """Request line and headers beyond the limit."""

    code = "head_too_large"


class BadJson(EcaHubError):
    """A body that is not JSON."""

    code = "bad_json"


class BadMultipart(EcaHubError):
    """A malformed or incomplete form."""

    code = "bad_multipart"


class BodyTooLarge(EcaHubError):
    """More bytes than allowed."""

    code = "too_large"


class BodyTimeout(EcaHubError):
    """The body did not arrive in time."""

    code = "body_timeout"


class UnsupportedType(EcaHubError):
    """A body that is neither an image, a form nor JSON."""

    code = "unsupported_type"


class Unauthorized(EcaHubError):
    """No key, or an unknown one."""

    code = "unauthorized"


class Forbidden(EcaHubError):
    """A key without this permission."""

    code = "forbidden"


class NotEnabled(EcaHubError):
    """A feature that the operator has not enabled."""

    code = "not_found"


class RepoNotAllowed(EcaHubError):
    """A repository that may not be loaded while the service runs."""

    code = "repo_not_allowed"


class Busy(EcaHubError):
    """The model is being loaded already."""

    code = "busy"


class InsufficientMemory(EcaHubError):
    """The model is larger than the limit on all models together."""

    code = "no_room"


class UnfitModel(EcaHubError):
    """The model's outputs are not finite, or it cannot run here."""

    code = "unfit_model"


class ModelNotLoaded(EcaHubError):
    """No loaded model has this id.

    Args:
        loaded: Ids of the models that are loaded.
        default_id: Id of the model that was meant, for a request without an id.
    """

    code = "model_not_loaded"

    def __init__(self, loaded: Iterable[str], *, default_id: str | None = None) -> None:
        message = "No loaded model has this id."
        if default_id is not None:
            message = f"Requests without a model id are for {default_id}, which is no longer loaded."
        super().__init__(message, hint=f"Loaded: {', '.join(sorted(loaded)) or 'none'}.")


class RetryLater(EcaHubError):
    """A temporary error.

    Args:
        message: What is wrong.
        retry_after_s: When to retry.
    """

    code = "not_ready"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, hint=f"Retry after {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class Overloaded(RetryLater):
    """Too much is in flight.

    Args:
        message: What is too much.
        retry_after_s: When to retry.
        response_delay_s: How long to wait before the response is sent, to slow down clients that retry at once.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1, response_delay_s: float = 0.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.response_delay_s = response_delay_s


class NotReady(RetryLater):
    """Starting, loading or draining."""

    code = "not_ready"


class WorkerLost(RetryLater):
    """The engine died or hung while it ran the batch of this image."""

    code = "worker_lost"


class DeadlineExceeded(EcaHubError):
    """No response within the deadline."""

    code = "deadline_exceeded"


class EngineFailed(EcaHubError):
    """The network raised for this image, though it was decoded: a fault of the model or of this program."""

    code = "engine_failed"


class InternalError(EcaHubError):
    """An unexpected exception."""

    code = "internal"
