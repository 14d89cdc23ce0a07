"""Fetch a data set of the hub by its name; once fetched, it is found in the cache without the hub."""

from pathlib import Path

from eca_hub.errors import InvalidConfig, RevisionNotFound
from eca_hub.hub.client import check_model_id, check_revision, hub_errors
from eca_hub.hub.http_limits import limit_requests

_CONVERTED = "refs/convert/parquet"
"""Branch with the Hugging Face Hub's own conversion of data sets in other formats."""


def fetch_parquet(name: str, revision: str | None, subset: str | None) -> Path:
    """Fetch the parquet files of a data set, and return their folder.

    Args:
        name: `owner/name`.
        revision: Branch, tag or commit.
        subset: Folder of one of several subsets.

    Raises:
        InvalidConfig: the name is neither a folder nor `owner/name`, or there are no parquet files.
        HubError: the hub does not have it, or cannot be reached and the cache does not have it.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InvalidConfig(f"There is no folder {name}, and it is not the OWNER/NAME of a data set on the hub.")
    check_model_id(name)
    if revision is not None:
        check_revision(revision)
    folder = _snapshot(name, revision, subset)
    if revision is None and next(folder.rglob("*.parquet"), None) is None:
        try:
            folder = _snapshot(name, _CONVERTED, subset)
        except RevisionNotFound:
            title = f"{name}/{subset}" if subset else name
            raise InvalidConfig(f"The data set {title} on the hub has no parquet files.") from None
    return folder


def _snapshot(name: str, revision: str | None, subset: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = f"{subset}/**" if subset else "**"
    # The client fetches the files in threads of its own, where the limits do not apply; the first request is here.
    with hub_errors(name, revision), limit_requests(None):
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"{wanted}.parquet", f"{wanted}/*.parquet"],
        )
    return Path(folder)
