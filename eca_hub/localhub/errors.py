"""Every way in which the hub says no, with the status and the code that the stock client understands.

Knows nothing about HTTP frameworks: `app.py` turns a HubRefusal into a response.

The four codes in CamelCase are the Hugging Face Hub's own and decide which exception huggingface_hub raises; the others
are ours.
"""

import errno


class HubRefusal(Exception):
    """A request that the hub will not carry out, and why.

    Args:
        status: HTTP status of the answer.
        code: Goes out as `X-Error-Code`.
        message: One sentence for a human; goes out as `X-Error-Message` and as `error` in the JSON body.
        headers: Further headers of the answer, such as the `X-Repo-Commit` that lets a client remember a missing file.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def invalid(message: str) -> HubRefusal:
    """Refuse a value that cannot be right: a name, a path, a body."""
    return HubRefusal(422, "invalid_request", message)


def bad_request(message: str) -> HubRefusal:
    """Refuse a request that cannot be read, or that refers to bytes the hub does not hold."""
    return HubRefusal(400, "bad_request", message)


def too_large(message: str) -> HubRefusal:
    """Refuse a body beyond its limit."""
    return HubRefusal(413, "too_large", message)


def conflict(message: str) -> HubRefusal:
    """Refuse to make what already exists."""
    return HubRefusal(409, "conflict", message)


def head_moved() -> HubRefusal:
    """Refuse a commit whose parent is no longer the head of its branch."""
    # The client's users match on the first sentence, so it reads as it does on the public Hub.
    message = "The branch was updated since you opened this page. Please refresh and try again."
    return HubRefusal(412, "head_moved", message)


def bad_token() -> HubRefusal:
    """Refuse a token that nobody here owns."""
    return HubRefusal(
        401, "unauthorized", "Invalid credentials in Authorization header", {"WWW-Authenticate": "Bearer"}
    )


def token_needed(action: str) -> HubRefusal:
    """Refuse a request without a token where one is needed."""
    message = f"{action} needs a token: log in with `hf auth login`, or pass token=..."
    return HubRefusal(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})


def forbidden(message: str) -> HubRefusal:
    """Refuse a known user who lacks the right."""
    return HubRefusal(403, "forbidden", message)


def repo_not_found(is_logged_in: bool) -> HubRefusal:
    """Refuse a repository that does not exist or that this caller may not see; the answer is the same on purpose."""
    if is_logged_in:
        return HubRefusal(404, "RepoNotFound", "Repository not found")
    return HubRefusal(401, "RepoNotFound", "Repository not found, or private: then a token is needed")


def gated(repo_id: str, is_logged_in: bool) -> HubRefusal:
    """Refuse the files of a gated repository to a caller who is not on its list."""
    message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
    return HubRefusal(403 if is_logged_in else 401, "GatedRepo", message)


def revision_not_found(revision: str) -> HubRefusal:
    """Refuse a branch, tag or commit that the repository does not have."""
    return HubRefusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def entry_not_found(path: str, commit_id: str | None = None) -> HubRefusal:
    """Refuse a file or folder that the revision does not have."""
    headers = {"X-Repo-Commit": commit_id} if commit_id else None
    return HubRefusal(404, "EntryNotFound", f"Entry not found: {path}", headers)


def blob_corrupt(sha256: str) -> HubRefusal:
    """Refuse to send bytes that are no longer what was stored."""
    message = f"The stored bytes of {sha256} are damaged or gone. Push the file again, or run: eca-hub localhub fsck"
    return HubRefusal(500, "blob_corrupt", message)


def disk_full() -> HubRefusal:
    """Refuse to store what the disk has no room for."""
    return HubRefusal(507, "disk_full", "No space left where the hub keeps its files; nothing was changed.")


def is_disk_full(error: OSError) -> bool:
    """Tell a full disk or an exhausted quota from other trouble with files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
