"""Git LFS uploads, in one piece or in parts: what the stock client uses for open files, or without Xet."""

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from eca_hub.localhub.blobs import sha256_of
from eca_hub.localhub.body_stream import receive
from eca_hub.localhub.context import Call, json_response, read_body
from eca_hub.localhub.errors import HubRefusal, bad_request, invalid
from eca_hub.localhub.faults import faultpoint
from eca_hub.localhub.signing import LIFETIME_S, is_signed, sign, until
from eca_hub.localhub.validation import check_sha256

MAX_OBJECTS = 1_000
MAX_OBJECT_BYTES = 1 << 40
MAX_PARTS = 10_000
LFS_MEDIA_TYPE = "application/vnd.git-lfs+json"


def batch(call: Call) -> Response:
    """POST /OWNER/NAME.git/info/lfs/objects/batch: say where each object is to be sent, or that it is here already."""
    call.contributable()
    body = call.json_body()
    objects, transfers = body.get("objects"), body.get("transfers", ["basic"])
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise invalid("Only uploads by sha256 are served here; download with /OWNER/NAME/resolve/REVISION/PATH.")
    if not isinstance(objects, list) or len(objects) > MAX_OBJECTS or not isinstance(transfers, list):
        raise bad_request(f'The body needs "objects", a list of at most {MAX_OBJECTS}, and perhaps "transfers".')
    # Each object once: the client sends as many times as it is told to, and two threads would share one open file.
    wanted = list(dict.fromkeys(_read_object(item) for item in objects))
    part_bytes = call.hub.lfs_part_bytes
    in_parts = "multipart" in transfers and any(size_bytes > part_bytes for _, size_bytes in wanted)
    answers = []
    for oid, size_bytes in wanted:
        answer: dict[str, Any] = {"oid": oid, "size": size_bytes}
        if call.store.blobs.size_bytes(oid) != size_bytes:
            upload = (
                _in_parts(call, oid, size_bytes)
                if in_parts and size_bytes > part_bytes
                else _in_one(call, oid, size_bytes)
            )
            verify_url = f"{call.base_url}{call.path.removesuffix('/objects/batch')}/verify"
            answer["actions"] = {"upload": upload, "verify": {"href": verify_url}}
        answers.append(answer)
    response = json_response(
        {"transfer": "multipart" if in_parts else "basic", "objects": answers, "hash_algo": "sha256"}
    )
    response.headers["content-type"] = LFS_MEDIA_TYPE
    return response


def verify(call: Call) -> Response:
    """POST /OWNER/NAME.git/info/lfs/verify: whether an object has arrived."""
    call.contributable()
    oid, size_bytes = _read_object(call.json_body())
    if call.store.blobs.size_bytes(oid) != size_bytes:
        raise HubRefusal(404, "lfs_object_missing", f"{oid} of {size_bytes} bytes is not here")
    return json_response({})


async def put_object(call: Call) -> Response:
    """PUT /-/lfs/OID: an object in one piece."""
    oid, size_bytes = _permitted(call, "object")
    with call.store.blobs.writer(oid) as writer:
        if await receive(call.request, writer.write, size_bytes) != size_bytes:
            raise invalid(f"The body does not have the announced {size_bytes} bytes.")
        await run_in_threadpool(writer.finish)
    return json_response({})


async def put_part(call: Call) -> Response:
    """PUT /-/lfs/OID/UPLOAD/NUMBER: a part, which is written to its place in the file at once."""
    _, size_bytes = _permitted(call, "part", call.param("upload"), call.param("part"))
    part_bytes = call.hub.lfs_part_bytes
    start = (int(call.param("part")) - 1) * part_bytes
    path = _upload_path(call)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    offset = start

    def write(piece: bytearray) -> None:
        nonlocal offset
        view = memoryview(piece)
        while view:
            num_bytes = os.pwrite(descriptor, view, offset)
            offset += num_bytes
            view = view[num_bytes:]

    try:
        await receive(call.request, write, min(part_bytes, size_bytes - start))
        await run_in_threadpool(os.fsync, descriptor)
        faultpoint("part.after_write")
    finally:
        os.close(descriptor)
    return json_response({}, headers={"ETag": f'"{call.param("part")}-{offset - start}"'})


async def complete(call: Call) -> Response:
    """POST /-/lfs/OID/UPLOAD: all parts were sent. Asking twice is fine: the client does when an answer is lost."""
    oid, size_bytes = _permitted(call, "complete", call.param("upload"))
    await read_body(call.request)
    await run_in_threadpool(_adopt_upload, call, oid, size_bytes)
    return json_response({})


def _adopt_upload(call: Call, oid: str, size_bytes: int) -> None:
    path = _upload_path(call)
    if call.store.blobs.size_bytes(oid) == size_bytes:
        path.unlink(missing_ok=True)
        return
    try:
        with path.open("rb") as file:
            is_right = os.fstat(file.fileno()).st_size == size_bytes and sha256_of(file) == oid
            os.fsync(file.fileno())
    except FileNotFoundError:
        raise invalid("No part of this upload has arrived.") from None
    if not is_right:
        raise invalid(f"The parts do not make up the object {oid} of {size_bytes} bytes.")
    faultpoint("blob.before_rename")
    call.store.blobs.adopt(path, oid)
    faultpoint("blob.after_rename")


def _in_one(call: Call, oid: str, size_bytes: int) -> dict[str, Any]:
    return {"href": _link(call, f"/-/lfs/{oid}", size_bytes, "object", oid)}


def _in_parts(call: Call, oid: str, size_bytes: int) -> dict[str, Any]:
    part_bytes = call.hub.lfs_part_bytes
    num_parts = -(-size_bytes // part_bytes)
    if num_parts > MAX_PARTS:
        raise invalid(f"{oid} is larger than {MAX_PARTS} parts of {part_bytes} bytes.")
    call.store.drop_old_uploads(LIFETIME_S)
    upload = secrets.token_hex(12)
    parts = {
        str(part): _link(call, f"/-/lfs/{oid}/{upload}/{part}", size_bytes, "part", oid, upload, str(part))
        for part in range(1, num_parts + 1)
    }
    href = _link(call, f"/-/lfs/{oid}/{upload}", size_bytes, "complete", oid, upload)
    return {"href": href, "header": {"chunk_size": str(part_bytes), **parts}}


def _link(call: Call, path: str, size_bytes: int, *words: str) -> str:
    valid_until = until()
    signature = sign(call.store.signing_key, valid_until, *words, str(size_bytes))
    query = urlencode({"size": size_bytes, "until": valid_until, "signature": signature})
    return f"{call.base_url}{path}?{query}"


def _permitted(call: Call, what: str, *words: str) -> tuple[str, int]:
    oid, size = check_sha256(call.param("oid")), call.query("size")
    if not is_signed(call.store.signing_key, call.query("signature"), call.query("until"), what, oid, *words, size):
        raise HubRefusal(403, "forbidden", "This upload link is not valid, or no longer; ask for a new one.")
    return oid, int(size)


def _upload_path(call: Call) -> Path:
    return call.store.upload_path(call.param("upload"))


def _read_object(item: object) -> tuple[str, int]:
    size_bytes = item.get("size") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(size_bytes, int) or not 0 <= size_bytes <= MAX_OBJECT_BYTES:
        raise invalid('Each object needs "oid" and "size", a number of bytes.')
    return check_sha256(item.get("oid")), size_bytes
