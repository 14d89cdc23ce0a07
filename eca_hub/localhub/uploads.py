"""Routes that publish: which files go to LFS, uploads by LFS and by Xet, and the commit that makes files visible.

The stock client uploads large files by Xet, as chunks, and by LFS, as they are, where Xet is switched off.
"""

import asyncio
import base64
import binascii
import codecs
import contextlib
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from eca_hub.localhub.auth import is_signed, link_expiry, sign
from eca_hub.localhub.blobs import create_file
from eca_hub.localhub.commits import CommitOperations
from eca_hub.localhub.context import RequestContext, check_length, json_response, read_body, stream_body
from eca_hub.localhub.errors import HubHTTPError, bad_request, invalid, revision_not_found, too_large
from eca_hub.localhub.gitattributes import check_cost, parse_gitattributes, parse_gitignore
from eca_hub.localhub.validation import check_path, check_sha256
from eca_hub.localhub.xet_format import MAX_SHARD_BYTES, MAX_XORB_BODY_BYTES, read_shard
from eca_hub.localhub.xorbs import ChunkLocations

MAX_REGULAR_FILE_BYTES = 10 << 20
MAX_LINE_BYTES = 32 << 20
MAX_COMMIT_BYTES = 2 << 30
MAX_FILES_PER_PREUPLOAD = 1_000
MAX_PATTERN_FILE_BYTES = 256 << 10
MAX_LFS_OBJECTS = 1_000
MAX_LFS_OBJECT_BYTES = 1 << 40
LFS_MEDIA_TYPE = "application/vnd.git-lfs+json"


def preupload(context: RequestContext) -> Response:
    """POST .../preupload/REVISION: for each file whether it goes to LFS, is ignored, or exists."""
    _, repo, _ = context.writable_repo()
    commit_id = repo.resolve(context.param("rev"))
    existing = repo.commit(commit_id).files
    body = context.json_body()
    files = body.get("files")
    if not isinstance(files, list) or len(files) > MAX_FILES_PER_PREUPLOAD:
        raise bad_request(f'The body needs "files", a list of at most {MAX_FILES_PER_PREUPLOAD}.')

    def read_text(name: str) -> str:
        file = existing.get(name)
        # A damaged file counts as empty: otherwise it could not be pushed again.
        with contextlib.suppress(HubHTTPError):
            if file:
                return context.store.blobs.read(file.sha256, MAX_PATTERN_FILE_BYTES).decode("utf-8", "replace")
        return ""

    lfs_patterns = parse_gitattributes(read_text(".gitattributes"))
    gitignore = body.get("gitIgnore")
    ignored = parse_gitignore(
        gitignore[:MAX_PATTERN_FILE_BYTES] if isinstance(gitignore, str) else read_text(".gitignore")
    )
    parsed = [_parse_file(item) for item in files]
    check_cost([path for path, _, _ in parsed], lfs_patterns, ignored)
    results = []
    for path, size_bytes, sample in parsed:
        result: dict[str, Any] = {"path": path, "shouldIgnore": ignored.holds_for(path)}
        is_lfs = size_bytes > MAX_REGULAR_FILE_BYTES or lfs_patterns.holds_for(path) or _is_binary(sample)
        result["uploadMode"] = "lfs" if is_lfs and size_bytes else "regular"
        file = existing.get(path)
        # A client that sees the id of its own bytes does not send them, so a damaged blob must not be reported.
        if file and context.store.blobs.size_bytes(file.sha256) == file.size_bytes:
            result["oid"] = file.etag
        results.append(result)
    return json_response({"files": results, "commitOid": commit_id})


async def commit(context: RequestContext) -> Response:
    """POST .../commit/BRANCH, parsed line by line so that memory holds one file at a time."""
    repo_id, repo, user = await run_in_threadpool(context.writable_repo)
    if context.flag("create_pr"):
        raise HubHTTPError(
            501, "not_implemented", "This hub has no pull requests: commit to a branch, without create_pr."
        )
    branch = repo.find_ref(context.param("rev"))
    if branch is None or not branch.startswith("refs/heads/"):
        raise revision_not_found(context.param("rev"))
    check_length(context.request, MAX_COMMIT_BYTES)
    operations = CommitOperations(context.store.blobs, context.can_use_blob)
    await _read_lines(context, operations)
    operations.check_complete()
    commit_id = await run_in_threadpool(context.store.run, repo.add_commit, branch, operations, user.name)
    url = f"{context.base_url}/{repo_id.url_path}/commit/{commit_id}"
    return json_response({"success": True, "commitOid": commit_id, "commitUrl": url, "hookOutput": ""})


def lfs_batch(context: RequestContext) -> Response:
    """POST /OWNER/NAME.git/info/lfs/objects/batch: where to send each object, or that it exists."""
    _, _, user = context.writable_repo()
    body = context.json_body()
    objects, transfers = body.get("objects"), body.get("transfers", ["basic"])
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise invalid("Only uploads by sha256 are supported; download with /OWNER/NAME/resolve/REVISION/PATH.")
    if not isinstance(objects, list) or len(objects) > MAX_LFS_OBJECTS or not isinstance(transfers, list):
        raise bad_request(f'The body needs "objects", a list of at most {MAX_LFS_OBJECTS}, and perhaps "transfers".')
    # Each object once: the client uploads as often as it is listed, and two of its threads would share one open file.
    results = []
    for oid, size_bytes in dict.fromkeys(_parse_object(item) for item in objects):
        result: dict[str, Any] = {"oid": oid, "size": size_bytes}
        if not _has_object(context, oid, size_bytes):
            expires_at = link_expiry()
            signature = sign(context.store.signing_key, expires_at, "lfs", oid, user.name, str(size_bytes))
            query = urlencode({"size": size_bytes, "user": user.name, "until": expires_at, "signature": signature})
            verify_url = f"{context.base_url}{context.path.removesuffix('/objects/batch')}/verify"
            upload = {"href": f"{context.base_url}/-/lfs/{oid}?{query}"}
            result["actions"] = {"upload": upload, "verify": {"href": verify_url}}
        results.append(result)
    response = json_response({"transfer": "basic", "objects": results, "hash_algo": "sha256"})
    response.headers["content-type"] = LFS_MEDIA_TYPE
    return response


def lfs_verify(context: RequestContext) -> Response:
    """POST /OWNER/NAME.git/info/lfs/verify: whether an object has arrived."""
    context.writable_repo()
    oid, size_bytes = _parse_object(context.json_body())
    if not _has_object(context, oid, size_bytes):
        raise HubHTTPError(404, "lfs_object_missing", f"{oid} of {size_bytes} bytes is not here")
    return json_response({})


async def put_lfs_object(context: RequestContext) -> Response:
    """PUT /-/lfs/OID: the bytes of an object, with the signed link as permission."""
    oid, user, size = check_sha256(context.param("oid")), context.query("user"), context.query("size")
    signature, expires_at = context.query("signature"), context.query("until")
    if not is_signed(context.store.signing_key, signature, expires_at, "lfs", oid, user, size):
        raise HubHTTPError(403, "forbidden", "This upload link is invalid or has expired; ask for a new one.")
    writer = context.store.blobs.writer(oid)
    try:
        if await stream_body(context.request, writer.writelines, int(size)) != int(size):
            raise invalid(f"The body does not have the announced {size} bytes.")
        await run_in_threadpool(context.store.run, writer.finish)
    finally:
        # A task of its own, so that it also runs where this one is canceled.
        await asyncio.wait([asyncio.ensure_future(run_in_threadpool(writer.close))])
    await run_in_threadpool(context.store.run, context.store.record_upload, user, oid)
    return json_response({})


def xet_write_token(context: RequestContext) -> Response:
    """GET .../xet-write-token/REVISION: where to send chunks, and the permission to do so."""
    _, _, user = context.writable_repo()
    # The client records for each address what it has sent there: the store's id gives a new or cleaned store a new
    # address.
    url = f"{context.base_url}/-/xet/{context.store.id}/{user.name}"
    expires_at = link_expiry()
    token = f"{expires_at}.{sign(context.store.signing_key, expires_at, 'xet', context.store.id, user.name)}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires_at)}
    return json_response({"casUrl": url, "accessToken": token, "exp": expires_at}, headers=headers)


async def put_xorb(context: RequestContext) -> Response:
    """POST /-/xet/STORE/WRITER/v1/xorbs/default/HASH."""
    writer = _xet_writer(context)
    xorb = check_sha256(context.param("xorb"))
    temporary = context.store.blobs.new_temporary()
    try:
        with create_file(temporary) as file:
            await stream_body(context.request, file.writelines, MAX_XORB_BODY_BYTES)
        await run_in_threadpool(context.store.run, context.store.xorbs.commit_file, temporary, writer, xorb)
    finally:
        temporary.unlink(missing_ok=True)
    return json_response({"was_inserted": True})


async def put_shard(context: RequestContext) -> Response:
    """POST /-/xet/STORE/WRITER/v1/shards: rebuild the files that the chunks make up, then respond."""
    writer = _xet_writer(context)
    shard = await read_body(context.request, MAX_SHARD_BYTES)
    await run_in_threadpool(context.store.run, _rebuild_files, context, writer, shard)
    return json_response({"result": 1})


def _has_object(context: RequestContext, oid: str, size_bytes: int) -> bool:
    """Whether the hub has the object and the user may use it; other users' objects have to be uploaded again."""
    return context.can_use_blob(oid) and context.store.blobs.size_bytes(oid) == size_bytes


async def _read_lines(context: RequestContext, operations: CommitOperations) -> None:
    rest = bytearray()
    num_bytes = 0
    async for piece in context.request.stream():
        num_bytes += len(piece)
        rest += piece
        if num_bytes > MAX_COMMIT_BYTES:
            raise too_large(f"The body is larger than {MAX_COMMIT_BYTES} bytes.")
        if len(rest) > MAX_LINE_BYTES:
            raise too_large(
                f"A line of a commit is larger than {MAX_LINE_BYTES} bytes: upload such files by Xet or LFS."
            )
        if b"\n" in piece:
            *lines, rest = rest.split(b"\n")
            await run_in_threadpool(context.store.run, _read_each, operations, lines)
    await run_in_threadpool(context.store.run, _read_each, operations, [rest])


def _read_each(operations: CommitOperations, lines: list[bytearray]) -> None:
    for line in lines:
        if line.strip():
            operations.read_line(bytes(line))


def _parse_file(item: object) -> tuple[str, int, bytes]:
    if not isinstance(item, dict):
        raise bad_request("Each file must be an object.")
    path, size_bytes, sample = item.get("path"), item.get("size"), item.get("sample", "")
    if not isinstance(path, str) or type(size_bytes) is not int or not isinstance(sample, str):
        raise bad_request('Each file needs "path", "size" and "sample".')
    try:
        return check_path(path), size_bytes, base64.b64decode(sample)
    except (binascii.Error, ValueError):
        raise bad_request("A sample is not base64.") from None


def _parse_object(item: object) -> tuple[str, int]:
    size_bytes = item.get("size") if isinstance(item, dict) else None
    if not isinstance(item, dict) or type(size_bytes) is not int or not 0 <= size_bytes <= MAX_LFS_OBJECT_BYTES:
        raise invalid('Each object needs "oid" and "size", a number of bytes.')
    return check_sha256(item.get("oid")), size_bytes


def _is_binary(sample: bytes) -> bool:
    """Whether the first bytes of a file are not text. They may end inside a character."""
    try:
        return "\0" in codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True


def _rebuild_files(context: RequestContext, writer: str, shard: bytes) -> None:
    store = context.store
    locations: ChunkLocations = {}
    shard_files = list(read_shard(shard))
    # Before any of them is written: a few xorbs can make any size.
    if any(shard_file.size_bytes > MAX_LFS_OBJECT_BYTES for shard_file in shard_files):
        raise too_large(f"A file is larger than {MAX_LFS_OBJECT_BYTES} bytes.")
    try:
        for shard_file in shard_files:
            store.xorbs.rebuild(shard_file, writer, store.blobs, locations)
            store.record_upload(writer, shard_file.sha256)
        store.xorbs.compact(writer, locations)
    except HubHTTPError:
        # The client may refer to chunks that it sent before a power cut or a garbage collection. To a new address it
        # sends all of them again.
        store.renew_id()
        raise


def _xet_writer(context: RequestContext) -> str:
    """Return the user to whom this Xet address and token were given."""
    store_id, writer = context.param("store"), context.param("writer")
    scheme, _, token = context.request.headers.get("authorization", "").partition(" ")
    expires_at, _, signature = token.strip().partition(".")
    fields = ("xet", store_id, writer)
    # Every address that this store has given out is valid until its token expires, also after the id has changed.
    if scheme.lower() != "bearer" or not is_signed(context.store.signing_key, signature, expires_at, *fields):
        raise HubHTTPError(401, "unauthorized", "This Xet token is invalid or has expired; ask for a new one.")
    return writer
