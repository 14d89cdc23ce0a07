"""Where a model comes from: the values of `--model`, and the ids that clients use for them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eca_hub import list_releases
from eca_hub.names import NAME_PATTERN
from eca_service.errors import BadSetting

_ID = re.compile(f"{NAME_PATTERN}(/{NAME_PATTERN})?")


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
            BadSetting: `name=folder` with an invalid name or without such a folder, a path that cannot be reached, or
                an id that clients cannot use.
        """
        source = cls._parse(text)
        name = source.folder_id if _is_folder(text) else source.public_id
        # Metrics, JSON and URLs carry it.
        if not text or not name or not source.qualified_id.isprintable():
            raise BadSetting(
                f"--model {text!r} gives no valid id: it is empty or has characters that are not printable UTF-8.",
                hint="Name a folder: --model owner/name=FOLDER.",
            )
        return source

    @classmethod
    def _parse(cls, text: str) -> "ModelSource":
        if _is_folder(text):
            return cls(text, folder_id=_id_of_folder(text))
        if text in list_releases():
            return cls(text, folder_id=text)
        name, equals, folder = text.partition("=")
        if equals:
            if not _ID.fullmatch(name):
                raise BadSetting(f"--model {text!r} has an invalid name.", hint="Write --model owner/name=FOLDER.")
            if not _is_folder(folder):
                raise BadSetting(f"--model {text!r}: there is no such folder.", hint="Write --model owner/name=FOLDER.")
            return cls(folder, folder_id=name)
        name, _, revision = text.partition("@")
        return cls(name, revision or None)

    def prefer_folder(self) -> "ModelSource":
        """Return the folder that has the name of this repository, if there is one by now, else this source."""
        is_plain_name = not self.folder_id and self.revision is None and _ID.fullmatch(self.id_or_folder)
        return ModelSource.parse(self.id_or_folder) if is_plain_name and _is_folder(self.id_or_folder) else self

    @property
    def location(self) -> str:
        """What the library loads: a repository stays one when the working directory has a folder of its name."""
        is_repository = not self.folder_id and _ID.fullmatch(self.id_or_folder)
        return f"hf-hub:{self.id_or_folder}" if is_repository else self.id_or_folder

    @property
    def public_id(self) -> str:
        """The id that clients use where one revision of it is served."""
        return self.folder_id or self.id_or_folder

    @property
    def branch(self) -> str:
        """The revision, which is main where none is given."""
        return self.revision or "main"

    @property
    def qualified_id(self) -> str:
        """The id that clients use where several revisions of it are served."""
        return f"{self.public_id}@{self.branch}"


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError as error:
        # One of its folders may not be entered, or a name is too long.
        raise BadSetting(f"--model {path[:200]!r} cannot be reached: {error.strerror}.") from None


def _id_of_folder(path: str) -> str:
    """Return a relative path that looks like an id as it is; of another path the last part: clients do not see it."""
    return path if _ID.fullmatch(path) else Path(path).resolve().name


def check_ids(sources: Sequence[ModelSource]) -> None:
    """Refuse folders with the same id, and a repository that is given twice at the same revision.

    Raises:
        BadSetting: two sources have the same id.
    """
    seen: set[str] = set()
    for source in sources:
        if source.qualified_id in seen:
            same = f"have the id {source.public_id}" if source.folder_id else f"are {source.qualified_id}"
            raise BadSetting(
                f"Two models {same}; a repository without a revision is at main.",
                hint="Omit one of them, or name a folder: --model owner/name=FOLDER.",
            )
        seen.add(source.qualified_id)
