"""Fetch a data set of the hub by its name; what was fetched once is found without the hub."""

from pathlib import Path

from eca_hub.errors import InvalidConfig, RevisionNotFound
from eca_hub.hub.client import check_model_id, check_revision, hub_errors

_CONVERTED = "refs/convert/parquet"
"""Where the Hugging Face Hub puts its own conversion of data sets that are in another format."""


def fetch_parquet(name: str, revision: str | None, subset: str | None) -> Path:
    """Fetch the parquet files of a data set, and return the folder that they lie in.

    Args:
        name: `owner/name`.
        revision: Branch, tag or commit.
        subset: Folder of one of several subsets.

    Raises:
        InvalidConfig: the name is no folder and cannot be one on the hub, or there are no parquet files.
        HubError: the hub does not have it, or does not answer and the cache does not hold it.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InvalidConfig(f"There is no folder {name}, and OWNER/NAME of a data set on the hub it cannot be.")
    check_model_id(name)
    if revision is not None:
        check_revision(revision)
    folder = _snapshot(name, revision, subset)
    if revision is None and next(folder.rglob("*.parquet"), None) is None:
        try:
            folder = _snapshot(name, _CONVERTED, subset)
        except RevisionNotFound:
            where = f"{name}/{subset}" if subset else name
            raise InvalidConfig(f"The data set {where} on the hub has no parquet files.") from None
    return folder


def _snapshot(name: str, revision: str | None, subset: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = f"{subset}/**" if subset else "**"
    with hub_errors(name, revision):
        found = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"{wanted}.parquet", f"{wanted}/*.parquet"],
        )
    return Path(found)
