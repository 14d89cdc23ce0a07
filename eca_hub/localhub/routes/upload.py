"""Publishing: which files are big, and the commit that makes files visible."""

import base64
import binascii
import codecs
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from eca_hub.localhub.commit_operations import Changes
from eca_hub.localhub.context import Call, check_length, json_response
from eca_hub.localhub.discussions import Discussions
from eca_hub.localhub.errors import HubRefusal, bad_request, forbidden, revision_not_found, too_large
from eca_hub.localhub.gitattributes import is_big_by_name, is_ignored
from eca_hub.localhub.repos import Repo
from eca_hub.localhub.validation import check_path

MAX_REGULAR_FILE_BYTES = 10 << 20
MAX_LINE_BYTES = 32 << 20
MAX_COMMIT_BYTES = 2 << 30
MAX_FILES_PER_PREUPLOAD = 1_000
MAX_PATTERN_FILE_BYTES = 256 << 10


def preupload(call: Call) -> Response:
    """POST .../preupload/REVISION: tell for each file whether it is big, left out, or here already."""
    _, repo, _ = call.contributable()
    files = repo.commit(repo.resolve(call.param("rev"))).files
    body = call.json_body()
    asked = body.get("files")
    if not isinstance(asked, list) or len(asked) > MAX_FILES_PER_PREUPLOAD:
        raise bad_request(f'The body needs "files", a list of at most {MAX_FILES_PER_PREUPLOAD}.')

    def text_of(name: str) -> str:
        file = files.get(name)
        return call.store.blobs.read(file.sha256, MAX_PATTERN_FILE_BYTES).decode("utf-8", "replace") if file else ""

    gitattributes = text_of(".gitattributes")
    gitignore = body.get("gitIgnore")
    gitignore = gitignore[:MAX_PATTERN_FILE_BYTES] if isinstance(gitignore, str) else text_of(".gitignore")
    answers = []
    for item in asked:
        path, size_bytes, sample = _read_asked(item)
        answer: dict[str, Any] = {"path": path, "shouldIgnore": is_ignored(path, gitignore)}
        is_big = size_bytes > MAX_REGULAR_FILE_BYTES or is_big_by_name(path, gitattributes) or _is_binary(sample)
        answer["uploadMode"] = "lfs" if is_big and size_bytes else "regular"
        file = files.get(path)
        # A client that sees the id of its own bytes sends nothing, so it must not see it when our copy is damaged.
        if file and call.store.blobs.size_bytes(file.sha256) == file.size_bytes:
            answer["oid"] = file.etag
        answers.append(answer)
    return json_response({"files": answers, "commitOid": repo.resolve(call.param("rev"))})


async def commit(call: Call) -> Response:
    """POST .../commit/BRANCH, read line by line so that memory holds one file at a time."""
    repo_id, repo, user = await run_in_threadpool(call.contributable)
    is_proposal = call.flag("create_pr")
    branch = repo.find_ref(call.param("rev"))
    if branch is None or branch.startswith("refs/tags/"):
        raise revision_not_found(call.param("rev"))
    if not is_proposal and not user.may_write(repo_id) and not _is_own_proposal(repo, branch, user.name):
        raise forbidden(f"{user.name} has no right to change {repo_id.full_name}")
    check_length(call.request, MAX_COMMIT_BYTES)
    changes = Changes(call.store.blobs)
    await _read_lines(call, changes)
    changes.check_complete()
    pull_url = None
    if is_proposal:
        number, commit_id = await run_in_threadpool(_propose, repo, branch, changes, user.name)
        pull_url = f"{call.base_url}/{repo_id.url_path}/discussions/{number}"
    else:
        commit_id = await run_in_threadpool(repo.add_commit, branch, changes, user.name)
    url = f"{call.base_url}/{repo_id.url_path}/commit/{commit_id}"
    answer = {"success": True, "commitOid": commit_id, "commitUrl": url, "hookOutput": ""}
    return json_response(answer | ({"pullRequestUrl": pull_url} if pull_url else {}))


async def _read_lines(call: Call, changes: Changes) -> None:
    rest = bytearray()
    num_bytes = 0
    async for piece in call.request.stream():
        num_bytes += len(piece)
        rest += piece
        if len(rest) > MAX_LINE_BYTES or num_bytes > MAX_COMMIT_BYTES:
            raise too_large(
                f"A line of a commit is larger than {MAX_LINE_BYTES} bytes: upload such files by Xet or LFS."
            )
        if b"\n" in piece:
            *lines, rest = rest.split(b"\n")
            await run_in_threadpool(_read_each, changes, lines)
    await run_in_threadpool(_read_each, changes, [rest])


def _read_each(changes: Changes, lines: list[bytearray]) -> None:
    for line in lines:
        if line.strip():
            changes.read_line(bytes(line))


def _propose(repo: Repo, branch: str, changes: Changes, author: str) -> tuple[int, str]:
    with repo.lock:
        discussions = Discussions(repo)
        number = discussions.next_number()
        commit_id = repo.add_commit(branch, changes, author, new_ref=f"refs/pr/{number}")
        discussions.open(number, changes.title, changes.message, author, base=branch)
        return number, commit_id


def _is_own_proposal(repo: Repo, ref: str, author: str) -> bool:
    if not ref.startswith("refs/pr/"):
        return False
    try:
        return bool(Discussions(repo).get(int(ref.removeprefix("refs/pr/")))["author"]["name"] == author)
    except HubRefusal:
        return False


def _read_asked(item: object) -> tuple[str, int, bytes]:
    if not isinstance(item, dict):
        raise bad_request("Each file must be an object.")
    path, size_bytes, sample = item.get("path"), item.get("size"), item.get("sample", "")
    if not isinstance(path, str) or not isinstance(size_bytes, int) or not isinstance(sample, str):
        raise bad_request('Each file needs "path", "size" and "sample".')
    try:
        return check_path(path), size_bytes, base64.b64decode(sample)
    except (binascii.Error, ValueError):
        raise bad_request("A sample is not base64.") from None


def _is_binary(sample: bytes) -> bool:
    """Whether the first bytes of a file are no text. They may end inside a character."""
    try:
        return "\0" in codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
