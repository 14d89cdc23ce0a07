"""Xet uploads, which the stock client uses by default. Downloads stay plain, so there is nothing to read here."""

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from eca_hub.localhub.body_stream import receive
from eca_hub.localhub.context import Call, json_response, read_body
from eca_hub.localhub.errors import HubRefusal
from eca_hub.localhub.signing import is_signed, sign, until
from eca_hub.localhub.validation import check_sha256
from eca_hub.localhub.xetformat import MAX_SHARD_BYTES, MAX_XORB_BODY_BYTES, read_shard
from eca_hub.localhub.xorbs import Places


def write_token(call: Call) -> Response:
    """GET .../xet-write-token/REVISION: where to send chunks, and the permission to do so."""
    # The revision is not looked at: for a pull request on somebody else's repository the client asks for "None".
    *_, user = call.contributable()
    # The client remembers for each address what it has sent there: the store's id makes a new or cleaned store a new
    # address.
    url = f"{call.base_url}/-/xet/{call.store.id}/{user.name}"
    valid_until = until()
    token = f"{valid_until}.{sign(call.store.signing_key, valid_until, 'xet', call.store.id, user.name)}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(valid_until)}
    return json_response({"casUrl": url, "accessToken": token, "exp": valid_until}, headers=headers)


async def put_xorb(call: Call) -> Response:
    """POST /-/xet/STORE/WRITER/v1/xorbs/default/HASH."""
    writer = _permitted(call)
    xorb = check_sha256(call.param("xorb"))
    temporary = call.store.blobs.new_temporary()
    try:
        with temporary.open("xb") as file:
            await receive(call.request, file.write, MAX_XORB_BODY_BYTES)
        await run_in_threadpool(call.store.xorbs.adopt, temporary, writer, xorb)
    finally:
        temporary.unlink(missing_ok=True)
    return json_response({"was_inserted": True})


async def put_shard(call: Call) -> Response:
    """POST /-/xet/STORE/WRITER/v1/shards: put the files together that the chunks make up, then answer."""
    writer = _permitted(call)
    shard = await read_body(call.request, MAX_SHARD_BYTES)
    await run_in_threadpool(_rebuild_all, call, writer, shard)
    return json_response({"result": 1})


def _rebuild_all(call: Call, writer: str, shard: bytes) -> None:
    places: Places = {}
    try:
        for shard_file in list(read_shard(shard)):
            call.store.xorbs.rebuild(shard_file, writer, call.store.blobs, places)
        call.store.xorbs.settle(writer, places)
    except HubRefusal:
        # The client may refer to chunks that it sent before a power cut or a cleaning. Under a new address it will send
        # all again.
        call.store.renew_id()
        raise


def _permitted(call: Call) -> str:
    store_id, writer = call.param("store"), call.param("writer")
    scheme, _, token = call.request.headers.get("authorization", "").partition(" ")
    valid_until, _, signature = token.strip().partition(".")
    words = ("xet", store_id, writer)
    # Any address that this store ever gave out is good until its token ends, also after the store has taken a new one.
    if scheme.lower() != "bearer" or not is_signed(call.store.signing_key, signature, valid_until, *words):
        raise HubRefusal(401, "unauthorized", "This Xet token is not valid, or no longer; ask for a new one.")
    return writer
