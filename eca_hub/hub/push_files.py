"""The files that a push sends: a package as it will be on the hub. Imports no torch.

On the hub the card names the model and its license; the folder itself stays as it is.
"""

from dataclasses import dataclass
from pathlib import Path

import safetensors
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from eca_hub.errors import InvalidConfig, InvalidPackage
from eca_hub.hub.card.classifier_card import render_card
from eca_hub.hub.card.detector_card import render_detector_card
from eca_hub.hub.card.edit import license_facts, read_metadata, set_license, set_model_id
from eca_hub.hub.client import check_model_id, check_new_ref, clean_token, hub_errors
from eca_hub.hub.hashes import file_has_hash, hash_like_hub
from eca_hub.hub.http_limits import limit_requests
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    FILES,
    PLOTS,
    WEIGHTS_FILE,
    config_from_json,
    detector_config_from_json,
    find_package,
    is_detector,
    is_file,
    plots_in,
    read_file,
)
from eca_hub.models.config import ModelConfig
from eca_hub.models.detector_config import DetectorConfig


@dataclass(frozen=True)
class PlannedFile:
    """One file that a push would send, or delete on the hub."""

    name: str
    num_bytes: int
    is_changed: bool
    """Whether the hub has other bytes, or no such file."""
    is_deleted: bool = False
    """Whether it is a plot on the hub that the package does not have."""


def plan_push(
    folder: str | Path,
    model_id: str,
    *,
    branch: str = "main",
    tag: str | None = None,
    license: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> list[PlannedFile]:
    """Return what a push would send, without changing anything.

    Args:
        folder: A package folder, or a run folder with one in `model/`.
        model_id: Hub `owner/name`.
        branch: Branch for the commit.
        tag: Tag for the commit, of which only the name is checked.
        license: License of the weights for the card; the card's own when not given.
        endpoint: Address of the hub; HF_ENDPOINT when none is given.
        token: Key to private repositories.

    Raises:
        InvalidPackage: the folder holds no complete package.
        InvalidConfig: a name or the license is malformed, or the metadata of the card cannot be read.
        HubError: the hub refuses to list its files.
    """
    check_names(model_id, branch, tag)
    source = PushFiles(folder, model_id, license)
    api = HfApi(endpoint=endpoint, token=clean_token(token))
    with hub_errors(model_id, branch, is_push=True), limit_requests(endpoint):
        try:
            remote = _remote_hashes_before(api, model_id, branch)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            remote = {}
    changed = source.changed_files(remote)
    sizes = {name: len(content) for name, content in source.read_small_files().items()}
    sizes[WEIGHTS_FILE] = source.weights_path.stat().st_size
    sent = [PlannedFile(name, sizes[name], is_changed=name in changed) for name in (*FILES, *PLOTS) if name in sizes]
    return sent + [PlannedFile(name, 0, is_changed=True, is_deleted=True) for name in source.stale_plots(remote)]


def _remote_hashes_before(api: HfApi, model_id: str, branch: str) -> dict[str, str]:
    """Return the hashes of the files that a push to a branch finds there: a new branch starts from the main one."""
    try:
        return remote_hashes(api, model_id, branch)
    except RevisionNotFoundError:
        return remote_hashes(api, model_id, "main")


def check_names(model_id: str, branch: str, tag: str | None = None) -> None:
    """Check the names of a push before any request.

    Raises:
        InvalidConfig: a repository, branch or tag cannot be called so.
    """
    check_model_id(model_id)
    check_new_ref("branch", branch)
    if tag is not None:
        check_new_ref("tag", tag)
    if tag == branch:
        raise InvalidConfig(f"Branch and tag are both {tag!r}; the name would mean both.", hint="Give another --tag.")


class PushFiles:
    """The package to publish, checked so that it can be loaded again, as it will be on the hub.

    Args:
        folder: A package folder, or a run folder with one in `model/`.
        model_id: Hub `owner/name`, for the card.
        license_id: License of the weights for the card, as the Hub spells it; the card's own when not given.

    Raises:
        InvalidPackage: the folder holds no complete package.
        InvalidConfig: the license is malformed, or the metadata of the card cannot be read.
    """

    def __init__(self, folder: str | Path, model_id: str, license_id: str | None = None) -> None:
        self.path = find_package(folder)
        self.weights_path = self.path / WEIGHTS_FILE
        self._model_id = model_id
        self._license_id = license_id
        config_bytes, origin = read_file(self.path / CONFIG_FILE), str(self.path)
        _check_utf8(config_bytes, self.path / CONFIG_FILE)
        self._config: ModelConfig | DetectorConfig
        if is_detector(config_bytes):
            self._config = detector_config_from_json(config_bytes, origin=origin)
        else:
            self._config = config_from_json(config_bytes, origin=origin)
        try:
            with safetensors.safe_open(self.weights_path, framework="numpy"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise InvalidPackage(f"{self.weights_path} cannot be read: {error}.") from None
        read_metadata(self.read_small_files()[CARD_FILE])

    def read_small_files(self) -> dict[str, bytes]:
        """Return config.json, the card, whose usage section names the model, and the plots that it shows."""
        config_bytes, card_path = read_file(self.path / CONFIG_FILE), self.path / CARD_FILE
        if is_file(card_path):
            card = read_file(card_path)
        elif others := [each.name for each in self.path.iterdir() if each.name.lower() == CARD_FILE.lower()]:
            raise InvalidPackage(
                f"{self.path} has {others[0]}; the Hub shows only a file called {CARD_FILE}.",
                hint=f"Rename it, or move it away to publish with a new card: mv {self.path / others[0]} {card_path}",
            )
        else:
            card = self._render_card(config_bytes).encode()
        if self._license_id is not None:
            card = set_license(card, self._license_id)
        plots = {name: read_file(self.path / name) for name in plots_in(card) if is_file(self.path / name)}
        return {CONFIG_FILE: config_bytes, CARD_FILE: set_model_id(card, self._model_id), **plots}

    def _render_card(self, config_bytes: bytes) -> str:
        facts = license_facts(b"", config_bytes)
        if isinstance(self._config, DetectorConfig):
            return render_detector_card(self._config, None, facts)
        return render_card(self._config, None, facts, is_timm=b'"pretrained_cfg"' in config_bytes)

    def changed_files(self, remote: dict[str, str]) -> set[str]:
        """Return the names of files of which the hub has other bytes, none, or too many."""
        changed = set(self.stale_plots(remote))
        changed |= {
            name
            for name, content in self.read_small_files().items()
            if hash_like_hub(content, remote.get(name, "")) != remote.get(name)
        }
        if not file_has_hash(self.weights_path, remote.get(WEIGHTS_FILE, "")):
            changed.add(WEIGHTS_FILE)
        return changed

    def stale_plots(self, remote: dict[str, str]) -> list[str]:
        """Return the plots on the hub that the package does not have."""
        small = self.read_small_files()
        return [name for name in PLOTS if name in remote and name not in small]

    def signatures(self) -> list[tuple[int, int, int]]:
        """Return numbers that differ after a write to a file."""
        states = [(self.path / name).stat() for name in (*FILES, *PLOTS) if (self.path / name).is_file()]
        return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _check_utf8(config_bytes: bytes, path: Path) -> None:
    """Refuse other encodings, which Python's JSON parser accepts and timm and transformers do not."""
    try:
        is_plain = not config_bytes.decode("utf-8").startswith("\ufeff")
    except UnicodeDecodeError:
        is_plain = False
    if not is_plain:
        raise InvalidPackage(
            f"{path} is not UTF-8, or begins with a byte order mark; timm and transformers could not read it.",
            hint="Save it as UTF-8.",
        )


def remote_hashes(api: HfApi, model_id: str, revision: str) -> dict[str, str]:
    """Return the hash that the hub announces for each file of a package that it has."""
    entries = api.get_paths_info(model_id, [*FILES, *PLOTS], revision=revision)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in files}
