"""A push in plain HTTP requests, without the retries by which the stock client waits for a hub that was killed."""

import base64
import hashlib
import json
from collections.abc import Mapping

import httpx2

REPO = "acme/digits"


def push(
    client: httpx2.Client,
    small: Mapping[str, bytes],
    big: Mapping[str, bytes],
    repo: str = REPO,
    parent: str | None = None,
) -> str:
    """Create the repository if need be, upload the big files by LFS, commit everything, and return the commit's id.

    Raises:
        httpx2.HTTPError: The hub refused, or was killed.
    """
    owner, name = repo.split("/")
    created = client.post("/api/repos/create", json={"name": name, "organization": owner, "type": "model"})
    assert created.status_code in (200, 409) or created.raise_for_status()
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)} for content in big.values()]
    if objects:
        body = {"operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
        batch = client.post(f"/{repo}.git/info/lfs/objects/batch", json=body).raise_for_status().json()
        contents = {hashlib.sha256(content).hexdigest(): content for content in big.values()}
        for item in batch["objects"]:
            if "actions" in item:
                client.put(item["actions"]["upload"]["href"], content=contents[item["oid"]]).raise_for_status()
    header = {"summary": "push", "description": ""} | ({"parentCommit": parent} if parent else {})
    lines: list[dict[str, object]] = [{"key": "header", "value": header}]
    for path, content in small.items():
        encoded = base64.b64encode(content).decode()
        lines.append({"key": "file", "value": {"path": path, "content": encoded, "encoding": "base64"}})
    for path, content in big.items():
        oid = hashlib.sha256(content).hexdigest()
        lines.append({"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": len(content)}})
    ndjson = "\n".join(json.dumps(line) for line in lines).encode()
    response = client.post(f"/api/models/{repo}/commit/main", content=ndjson).raise_for_status().json()
    return str(response["commitOid"])
