"""Discussions and pull requests of a repository, kept in one small file beside its references.

Knows the repository; knows nothing about HTTP. A pull request is a discussion with a reference `refs/pr/N`.
"""

import contextlib
import json
import secrets
from typing import Any

from eca_hub.localhub.clock import now
from eca_hub.localhub.disk import canonical_json, write_atomically
from eca_hub.localhub.errors import HubRefusal, bad_request, conflict
from eca_hub.localhub.repos import Repo

MAX_TEXT_CHARS = 64_000
MAX_DISCUSSIONS = 10_000
MAX_EVENTS = 1_000


class Discussions:
    """All discussions of one repository."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._path = repo.folder / "discussions.json"
        self._all: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError):
            self._all = json.loads(self._path.read_bytes())

    @property
    def newest_first(self) -> list[dict[str, Any]]:
        """Every discussion."""
        return self._all[::-1]

    def next_number(self) -> int:
        """The number that the next discussion will have."""
        # After a crash a reference may be ahead of its discussion.
        numbers = [int(ref.removeprefix("refs/pr/")) for ref in self._repo.refs if ref.startswith("refs/pr/")]
        return max([0, *numbers, *(int(entry["num"]) for entry in self._all)]) + 1

    def get(self, number: int) -> dict[str, Any]:
        """Return a discussion by its number."""
        for entry in self._all:
            if entry["num"] == number:
                return entry
        raise HubRefusal(404, "not_found", f"There is no discussion {number}")

    def open(self, number: int, title: str, text: str, author: str, base: str | None = None) -> dict[str, Any]:
        """Begin a discussion under the next number, or a pull request onto `base`, whose reference exists by then."""
        if len(self._all) >= MAX_DISCUSSIONS:
            raise conflict(f"A repository has at most {MAX_DISCUSSIONS} discussions")
        entry = {
            "num": number,
            "title": title.strip()[:1000] or "Untitled",
            "author": {"name": author},
            "createdAt": now(),
            "status": "open",
            "isPullRequest": base is not None,
            "base": base,
            "events": [_event("comment", author, _comment(text))],
        }
        self._all.append(entry)
        self._save()
        return entry

    def add_comment(self, number: int, author: str, text: str) -> dict[str, Any]:
        """Add a comment."""
        return self._add_event(number, _event("comment", author, _comment(text)))

    def edit_comment(self, number: int, event_id: str, author: str, text: str) -> dict[str, Any]:
        """Replace a comment's text."""
        for event in self.get(number)["events"]:
            if event["id"] == event_id and event["type"] == "comment":
                if event["author"]["name"] != author:
                    raise HubRefusal(403, "forbidden", "Only its author can edit a comment")
                event["data"] = {**_comment(text), "edited": True}
                self._save()
                found: dict[str, Any] = event
                return found
        raise HubRefusal(404, "not_found", f"There is no comment {event_id}")

    def rename(self, number: int, author: str, title: str) -> dict[str, Any]:
        """Give a discussion another title."""
        entry = self.get(number)
        event = _event("title-change", author, {"from": entry["title"], "to": title.strip()[:1000]})
        entry["title"] = event["data"]["to"]
        return self._add_event(number, event)

    def change_status(self, number: int, author: str, status: object) -> dict[str, Any]:
        """Open, close or (for a pull request that is) merge a discussion."""
        if status not in ("open", "closed", "merged"):
            raise bad_request("status must be open or closed.")
        self.get(number)["status"] = status
        return self._add_event(number, _event("status-change", author, {"status": status}))

    def merge(self, number: int, author: str) -> None:
        """Bring a pull request's changes onto its base."""
        entry = self.get(number)
        if not entry["isPullRequest"] or entry["status"] == "merged":
            raise bad_request(f"{number} is not an open pull request.")
        title = f"{entry['title']} (#{number})"
        entry["mergeCommitId"] = self._repo.merge(f"refs/pr/{number}", entry["base"], title, "", author)
        self.change_status(number, author, "merged")

    def _add_event(self, number: int, event: dict[str, Any]) -> dict[str, Any]:
        events = self.get(number)["events"]
        if len(events) >= MAX_EVENTS:
            raise conflict(f"A discussion has at most {MAX_EVENTS} events")
        events.append(event)
        self._save()
        return event

    def _save(self) -> None:
        write_atomically(self._path, canonical_json(self._all), "refs")


def _comment(text: str) -> dict[str, Any]:
    return {"edited": False, "hidden": False, "latest": {"raw": text[:MAX_TEXT_CHARS], "updatedAt": now()}}


def _event(kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": secrets.token_hex(12), "type": kind, "createdAt": now(), "author": {"name": author}, "data": data}
