"""Who may ask what: keys for reading and for administration, held and compared as SHA-256 digests.

Keys come from a file or from the environment, never from the command line, where every user of the machine
could read them. They are long and random, so one unsalted hash is enough to keep them.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from features.config import Config
from features.errors import ConfigError

Role = Literal["read", "admin"]
Need = Literal["nothing", "read", "admin", "admin key"]

ENVIRONMENT: dict[str, Role] = {"TWOTOWER_READ_KEY": "read", "TWOTOWER_ADMIN_KEY": "admin"}
"""Variables that hold a key each, and what it may do."""

_SHORTEST = 16
_LINE = re.compile(r"(read|admin) ([A-Za-z0-9][A-Za-z0-9_.-]{0,63}) sha256:([0-9a-f]{64})")
_OPEN = frozenset({"/livez", "/readyz", "/", "/docs", "/openapi.json"})


class KeysConfig(Config):
    """Where API keys come from, besides the variables TWOTOWER_READ_KEY and TWOTOWER_ADMIN_KEY."""

    file: Path | None = Field(
        None,
        description="file of keys, one `read|admin NAME sha256:HEX` a line, as `twotower key` prints them; "
        "none is the environment alone",
    )


@dataclass(frozen=True)
class Key:
    """A key that is known: never the key itself."""

    role: Role
    name: str
    digest: bytes


class Keys:
    """The keys of a server.

    Args:
        keys: All of them; none at all leaves every route but those of administration open.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)
        self.has_admin = any(key.role == "admin" for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def read(cls, config: KeysConfig, environment: Mapping[str, str] | None = None) -> "Keys":
        """Return the keys of a configuration's file and of the environment.

        Raises:
            ConfigError: If the file cannot be read or has a line that is no key, or a variable's key is too
                short. No message shows a key.
        """
        found = [] if config.file is None else _read_file(config.file)
        for variable, role in ENVIRONMENT.items():
            secret = (os.environ if environment is None else environment).get(variable, "")
            if secret and len(secret) < _SHORTEST:
                raise ConfigError(
                    f"{variable} has {len(secret)} characters; a key needs {_SHORTEST} or more "
                    "(`twotower key` makes one)"
                )
            if secret:
                found.append(Key(role, variable.lower(), _digest(secret.encode())))
        return cls(found)

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """Return the known key that a request shows, by `Authorization: Bearer` or `X-API-Key`."""
        shown = shown_key(headers)
        if not shown:
            return None
        digest, found = _digest(shown), None
        for key in self._keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def shown_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key that a request shows, known or not; empty where it shows none."""
    shown = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            shown = value[7:].strip()
        elif name == b"x-api-key" and not shown:
            shown = value.strip()
    return shown


def need(method: str, path: str) -> Need:
    """Return what a request needs: a route that is not listed needs to read.

    Routes of administration need an admin key even where no keys are set, since a page in somebody's browser
    can reach a loopback port.
    """
    if path in _OPEN or path.startswith("/page/"):
        return "nothing"
    if path.startswith("/v1/admin"):
        return "admin key"
    if path.startswith("/v1/judgments") and method not in ("GET", "HEAD"):
        return "admin"
    return "read"


def require_loopback_or_keys(host: str, keys: Keys) -> None:
    """Check that whoever can reach an address needs a key.

    Raises:
        ConfigError: If the address is not loopback and there is no key.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not len(keys):
        raise ConfigError(
            f"host {host!r} is not loopback and no API key is set, so anybody could ask; set "
            "TWOTOWER_READ_KEY or serve.keys.file (`twotower key` makes one), or serve 127.0.0.1"
        )


def new_key(role: Role, name: str) -> tuple[str, str]:
    """Return a new random key and its line for the file of keys.

    Raises:
        ConfigError: If the name has other characters than letters, digits, `_`, `.` and `-`.
    """
    secret = secrets.token_urlsafe(32)
    line = f"{role} {name} sha256:{_digest(secret.encode()).hex()}"
    if _LINE.fullmatch(line) is None:
        raise ConfigError(f"{name!r} cannot name a key; use up to 64 letters, digits, '_', '.' and '-'")
    return secret, line


def _read_file(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"serve.keys.file {path} cannot be read: {reason}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ConfigError(
                f"{path}:{number}: no key; a line is `read|admin NAME sha256:HEX` (`twotower key` prints one)"
            )
        role: Role = "admin" if found[1] == "admin" else "read"
        keys.append(Key(role, found[2], bytes.fromhex(found[3])))
    if not keys:
        raise ConfigError(f"serve.keys.file {path} has no key; `twotower key` makes one")
    return keys


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
