"""Routes of Xet uploads, which the stock client uses by default. Downloads are plain files."""

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from eca_hub.localhub.auth import is_signed, link_expiry, sign
from eca_hub.localhub.body_stream import receive
from eca_hub.localhub.context import RequestContext, json_response, read_body
from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.validation import check_sha256
from eca_hub.localhub.xet_format import MAX_SHARD_BYTES, MAX_XORB_BODY_BYTES, read_shard
from eca_hub.localhub.xorbs import ChunkLocations


def write_token(context: RequestContext) -> Response:
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
    writer = _check_token(context)
    xorb = check_sha256(context.param("xorb"))
    temporary = context.store.blobs.new_temporary()
    try:
        with temporary.open("xb") as file:
            await receive(context.request, file.write, MAX_XORB_BODY_BYTES)
        await run_in_threadpool(context.store.xorbs.commit_file, temporary, writer, xorb)
    finally:
        temporary.unlink(missing_ok=True)
    return json_response({"was_inserted": True})


async def put_shard(context: RequestContext) -> Response:
    """POST /-/xet/STORE/WRITER/v1/shards: rebuild the files that the chunks make up, then respond."""
    writer = _check_token(context)
    shard = await read_body(context.request, MAX_SHARD_BYTES)
    await run_in_threadpool(_rebuild_all, context, writer, shard)
    return json_response({"result": 1})


def _rebuild_all(context: RequestContext, writer: str, shard: bytes) -> None:
    store = context.store
    locations: ChunkLocations = {}
    try:
        for shard_file in list(read_shard(shard)):
            store.xorbs.rebuild(shard_file, writer, store.blobs, locations)
            store.record_upload(writer, shard_file.sha256)
        store.xorbs.compact(writer, locations)
    except HubHTTPError:
        # The client may refer to chunks that it sent before a power cut or a garbage collection. To a new address it
        # sends all of them again.
        store.renew_id()
        raise


def _check_token(context: RequestContext) -> str:
    store_id, writer = context.param("store"), context.param("writer")
    scheme, _, token = context.request.headers.get("authorization", "").partition(" ")
    expires_at, _, signature = token.strip().partition(".")
    fields = ("xet", store_id, writer)
    # Every address that this store has given out is valid until its token expires, also after the id has changed.
    if scheme.lower() != "bearer" or not is_signed(context.store.signing_key, signature, expires_at, *fields):
        raise HubHTTPError(401, "unauthorized", "This Xet token is invalid or has expired; ask for a new one.")
    return writer
