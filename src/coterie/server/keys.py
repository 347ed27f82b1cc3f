"""Who may ask: keys from a file that holds their sha256 only, compared in constant time over all of them.

A line is `name scope sha256`, the scope `user` or `admin` (who may also read /metrics); `#` begins a comment.
A key is 256 random bits, so a plain hash is enough: there is nothing to guess. The file is read again on SIGHUP.
"""

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import ConfigError
from coterie.server.failures import ApiError

__all__ = ["Key", "Keys", "add_key"]

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+(user|admin)\s+([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Key:
    """Whose request it is. `name` is the owner that the engine is fair between."""

    name: str
    scope: str  # "user" or "admin"


_NOBODY = Key("", "admin")


class Keys:
    """No file: everybody may do everything, which only a loopback address allows."""

    def __init__(self, path: Path | None = None):
        self._path = path
        self._keys: list[tuple[bytes, Key]] = []
        self.reload()

    @property
    def are_needed(self) -> bool:
        return self._path is not None

    def reload(self) -> None:
        """Read the file again. Raises `ConfigError` and keeps what was."""
        if self._path is None:
            return
        keys = _read(self._path)
        if not keys:
            raise ConfigError(
                f"{self._path} holds no key: `coterie serve --new-key NAME --api-key-file {self._path}` adds one"
            )
        self._keys = keys

    def find(self, authorization: str | None, x_api_key: str | None) -> Key:
        """The key that a request's headers hold; `ApiError` 401 where there is none."""
        if not self.are_needed:
            return _NOBODY
        scheme, _, rest = (authorization or "").partition(" ")
        given = rest.strip() if scheme.lower() == "bearer" else (x_api_key or "").strip()
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        found = None
        for known, key in self._keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(known, digest):
                found = key
        if found is None:
            what = "is not one of this server's" if given else "is missing"
            raise ApiError(
                401,
                f"the API key {what}: send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return found


def add_key(path: Path, name: str, scope: str = "user") -> str:
    """Make a key, append its hash to the file (made for its owner alone), and return the key, which is kept nowhere."""
    key = "ck-" + secrets.token_urlsafe(32)
    line = f"{name} {scope} {hashlib.sha256(key.encode()).hexdigest()}"
    if _LINE.fullmatch(line) is None:
        raise ConfigError(
            f"{name!r} with the scope {scope!r} cannot name a key, expected NAME or NAME:admin, the name of letters, "
            "digits, dots and dashes"
        )
    if path.exists() and any(key.name == name for _, key in _read(path)):
        raise ConfigError(f"{path} has a key named {name!r} already: remove its line first, or take another name")
    is_torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(("\n" if is_torn else "") + line + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def _read(path: Path) -> list[tuple[bytes, Key]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a key file: it is not UTF-8") from None
    keys: list[tuple[bytes, Key]] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:  # the line itself may be a key in the clear: it is not shown
            raise ConfigError(
                f"{path}, line {number}: expected `name scope sha256`, the scope user or admin; "
                f"`coterie serve --new-key NAME --api-key-file {path}` writes such lines"
            )
        name, scope, digest = match.groups()
        if any(key.name == name for _, key in keys):
            raise ConfigError(f"{path}, line {number}: the name {name!r} appears twice")
        keys.append((bytes.fromhex(digest), Key(name, scope)))
    return keys
