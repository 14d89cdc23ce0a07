"""Errors of the hub, with the status and the code that the stock client understands.

The codes in CamelCase are the Hugging Face Hub's own and decide which exception huggingface_hub raises; the others are
ours. `app.py` turns a HubHTTPError into a response.
"""

import errno


class HubHTTPError(Exception):
    """A request that cannot be carried out.

    Args:
        status: HTTP status of the response.
        code: Sent as `X-Error-Code`.
        message: One sentence, sent as `X-Error-Message` and as `error` in the JSON body.
        headers: Further headers, such as the `X-Repo-Commit` that lets a client cache that a file is missing.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def invalid(message: str) -> HubHTTPError:
    """422: an invalid value, such as a name, a path or a hash."""
    return HubHTTPError(422, "invalid_request", message)


def bad_request(message: str) -> HubHTTPError:
    """400: a request that cannot be parsed, or that refers to bytes the hub does not have."""
    return HubHTTPError(400, "bad_request", message)


def too_large(message: str) -> HubHTTPError:
    """413: a body beyond its limit."""
    return HubHTTPError(413, "too_large", message)


def conflict(message: str) -> HubHTTPError:
    """409: something of that name exists already."""
    return HubHTTPError(409, "conflict", message)


def head_moved() -> HubHTTPError:
    """412: the parent of a commit is no longer the head of its branch."""
    # Clients match on the first sentence, so it reads as it does on the public Hub.
    message = "The branch was updated since you opened this page. Please refresh and try again."
    return HubHTTPError(412, "head_moved", message)


def bad_token() -> HubHTTPError:
    """401: an unknown token."""
    return HubHTTPError(
        401, "unauthorized", "Invalid credentials in Authorization header", {"WWW-Authenticate": "Bearer"}
    )


def token_required(action: str) -> HubHTTPError:
    """401: a request without a token where one is needed."""
    message = f"{action} needs a token: log in with `hf auth login`, or pass token=..."
    return HubHTTPError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})


def forbidden(message: str) -> HubHTTPError:
    """403: the user lacks the right."""
    return HubHTTPError(403, "forbidden", message)


def repo_not_found(is_logged_in: bool) -> HubHTTPError:
    """404 or 401: no such repository, or one that the user may not see; the response is the same on purpose."""
    if is_logged_in:
        return HubHTTPError(404, "RepoNotFound", "Repository not found")
    return HubHTTPError(401, "RepoNotFound", "Repository not found, or private: then a token is needed")


def repo_corrupt(name: str) -> HubHTTPError:
    """500: the stored metadata of a repository are damaged."""
    message = f"The stored data of repository {name} are damaged. Run: eca-hub localhub fsck"
    return HubHTTPError(500, "repo_corrupt", message)


def gated(repo_id: str, is_logged_in: bool) -> HubHTTPError:
    """403 or 401: files of a gated repository, for a user who is not on its list."""
    message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
    return HubHTTPError(403 if is_logged_in else 401, "GatedRepo", message)


def revision_not_found(revision: str) -> HubHTTPError:
    """404: no such branch, tag or commit."""
    return HubHTTPError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def entry_not_found(path: str, commit_id: str | None = None) -> HubHTTPError:
    """404: no such file or folder in the revision."""
    headers = {"X-Repo-Commit": commit_id} if commit_id else None
    return HubHTTPError(404, "EntryNotFound", f"Entry not found: {path}", headers)


def blob_corrupt(sha256: str) -> HubHTTPError:
    """500: stored bytes that no longer have their hash."""
    message = f"The stored bytes of {sha256} are damaged or missing. Push the file again, or run: eca-hub localhub fsck"
    return HubHTTPError(500, "blob_corrupt", message)


def disk_full() -> HubHTTPError:
    """507: no space left."""
    return HubHTTPError(507, "disk_full", "No space left where the hub keeps its files; nothing was changed.")


def is_disk_full(error: OSError) -> bool:
    """Whether the disk is full, or a quota or the limit on the size of a file is reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
