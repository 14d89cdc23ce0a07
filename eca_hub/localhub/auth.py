"""Users and their rights: tokens, roles, and the signed links by which the client uploads without a token.

A users file is JSON. The short form gives each user a token; the long form adds what `whoami` returns, and a role:

    {"alice": "token-of-alice", "bob": {"token": "token-of-bob", "role": "read", "orgs": ["acme"], "fullname": "Bob"}}

`orgs` may also be an object with full names: {"acme": "Acme Research"}.

    role    may read                                 may write
    admin   everything                               everything, under any owner name
    write   public, and private under own names      repositories under the own name and those of the own orgs
    read    public, and private under own names      nothing
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.validation import RepoId, check_name

Role = Literal["admin", "write", "read"]


@dataclass(frozen=True)
class User:
    """A user with a token."""

    name: str
    role: Role = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    """Full names by name."""
    fullname: str = ""

    def owns(self, repo_id: RepoId) -> bool:
        """Whether the owner of a repository is this user or one of the user's organizations."""
        return self.role == "admin" or repo_id.owner.lower() in {name.lower() for name in (self.name, *self.orgs)}

    def can_write(self, repo_id: RepoId) -> bool:
        """Whether this user may create, change and delete this repository."""
        return self.role != "read" and self.owns(repo_id)


class BadUsersFile(Exception):
    """A users file that cannot be read; the message says where and what to write."""


class Users:
    """Maps tokens to users. Only digests of tokens are kept.

    Args:
        tokens: Each user with the user's token.
    """

    def __init__(self, tokens: Iterable[tuple[User, str]]) -> None:
        self._by_digest = {_digest(token.encode()): user for user, token in tokens}

    def find(self, token: bytes) -> User | None:
        """Return the user of a token, or None."""
        token_digest = _digest(token)
        user = None
        # Every digest is compared, in constant time, so that timing reveals nothing about tokens.
        for digest, candidate in self._by_digest.items():
            if hmac.compare_digest(digest, token_digest):
                user = candidate
        return user

    @classmethod
    def single(cls, token: str) -> "Users":
        """One token, of the admin `local`."""
        return cls([(User("local", "admin"), token)])

    @classmethod
    def from_file(cls, path: Path) -> "Users":
        """Read a users file.

        Raises:
            BadUsersFile: it cannot be read.
        """
        try:
            value = json.loads(path.read_bytes())
        except OSError as error:
            raise BadUsersFile(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise BadUsersFile(f'{path} is not JSON; write {{"alice": "token-of-alice"}}') from None
        if not isinstance(value, dict) or not value:
            raise BadUsersFile(
                f'{path} must hold an object with at least one user; write {{"alice": "token-of-alice"}}'
            )
        tokens = [_read_user(name, entry, path) for name, entry in value.items()]
        if len({user.name.lower() for user, _ in tokens}) < len(tokens):
            raise BadUsersFile(f"{path}: two users have the same name but for case; owners are compared without it")
        if len({token for _, token in tokens}) < len(tokens):
            raise BadUsersFile(f"{path}: two users have the same token; give each their own")
        return cls(tokens)


def _read_user(name: str, entry: object, path: Path) -> tuple[User, str]:
    fields = {"token": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or not fields.keys() <= {"token", "role", "orgs", "fullname"}:
        raise BadUsersFile(f"{path}: {name!r} must have a token, or an object with token, role, orgs, fullname")
    token, role, orgs, fullname = (fields.get(key, default) for key, default in _USER_DEFAULTS.items())
    if not isinstance(token, str) or not is_token(token):
        raise BadUsersFile(f"{path}: the token of {name!r} must be printable ASCII characters without a space")
    if role not in get_args(Role):
        raise BadUsersFile(f"{path}: the role of {name!r} must be admin, write or read, not {role!r}")
    named = {str(org): str(org) for org in orgs} if isinstance(orgs, list) else orgs
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in (*named.values(), fullname)):
        raise BadUsersFile(
            f"{path}: {name!r} needs orgs as a list of names, or full names by name, and fullname as a string"
        )
    try:
        return User(check_name(name), role, {check_name(org): text for org, text in named.items()}, fullname), token
    except HubHTTPError as error:
        raise BadUsersFile(f"{path}: {error.message}") from None


def is_token(text: str) -> bool:
    """Whether a string can be sent as a bearer token."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


_USER_DEFAULTS: dict[str, object] = {"token": None, "role": "write", "orgs": [], "fullname": ""}


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_or_create_token(root: Path) -> str:
    """Return the token in ROOT/token, which is created at the first start.

    Raises:
        BadUsersFile: the file holds no token, or cannot be read.
    """
    path = root / "token"
    with contextlib.suppress(FileNotFoundError):
        try:
            token = path.read_text("utf-8-sig").strip()
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise BadUsersFile(f"The token file {path} cannot be read: {_reason(error)}") from None
        if is_token(token):
            return token
        # Empty is what a hub killed at its first start leaves.
        if token:
            raise BadUsersFile(f"The token file {path} does not hold a token: printable ASCII without a space")
    token = f"local_{secrets.token_hex(20)}"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is not text"


LINK_LIFETIME_S = 12 * 3600


def link_expiry() -> int:
    """When a link signed now expires, in seconds since 1970."""
    return int(time.time()) + LINK_LIFETIME_S


def sign(key: bytes, expires_at: int, *fields: str) -> str:
    """Return the signature of a permission, which is a list of fields."""
    message = "\0".join((str(expires_at), *fields)).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def is_signed(key: bytes, signature: str, expires_at: str, *fields: str) -> bool:
    """Whether this hub signed this permission and it has not expired."""
    if not expires_at.isascii() or not expires_at.isdigit() or len(expires_at) > 12 or int(expires_at) < time.time():
        return False
    return hmac.compare_digest(sign(key, int(expires_at), *fields).encode(), signature.encode())
