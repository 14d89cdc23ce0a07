"""Where a model comes from: the values of `--model`, and the ids that clients use for them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eca_hub import list_releases
from eca_service.errors import BadSetting

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: `owner/name`, `owner/name@revision`, a folder, `name=folder` or a release's name."""

    id_or_folder: str
    """Hub `owner/name`, the path of a folder, or the name of a release of eca-hub."""
    revision: str | None = None
    """Branch, tag or commit."""
    folder_id: str = ""
    """Id of a folder, which clients use instead of its path, or of a release; empty for a repository."""

    @classmethod
    def parse(cls, text: str) -> "ModelSource":
        """Read the value of `--model`.

        Raises:
            BadSetting: `name=folder` with an invalid name or without such a folder.
        """
        if Path(text).is_dir():
            return cls(text, folder_id=_id_of_folder(text))
        if text in list_releases():
            return cls(text, folder_id=text)
        name, equals, folder = text.partition("=")
        if equals:
            if not _ID.fullmatch(name):
                raise BadSetting(f"--model {text!r} has an invalid name.", hint="Write --model owner/name=FOLDER.")
            if not Path(folder).is_dir():
                raise BadSetting(f"--model {text!r}: there is no such folder.", hint="Write --model owner/name=FOLDER.")
            return cls(folder, folder_id=name)
        name, _, revision = text.partition("@")
        return cls(name, revision or None)

    @property
    def public_id(self) -> str:
        """The id that clients use."""
        return self.folder_id or self.id_or_folder


def _id_of_folder(path: str) -> str:
    """Return a relative path that looks like an id as it is; of another path the last part: clients do not see it."""
    return path if _ID.fullmatch(path) else Path(path).resolve().name


def check_ids(sources: Sequence[ModelSource]) -> None:
    """Refuse folders with the same id.

    Raises:
        BadSetting: two sources have the same id.
    """
    seen: set[tuple[str, str | None]] = set()
    for source in sources:
        if (source.public_id, source.revision) in seen:
            raise BadSetting(
                f"Two models have the id {source.public_id}.", hint="Name one of them: --model owner/name=FOLDER."
            )
        seen.add((source.public_id, source.revision))
