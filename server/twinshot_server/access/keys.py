"""API keys: read from a file or the environment, compared in constant time, each with limits of its own."""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from twinshot_server.access.limits import Limits
from twinshot_server.settings import Settings, SettingsError

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
ANONYMOUS = "anonymous"


class KeyEntry(BaseModel):
    """One table of the key file: `[name]` with `secret` or its SHA-256, and limits."""

    model_config = ConfigDict(extra="forbid")

    secret: SecretStr | None = Field(default=None, min_length=8)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    rate: float | None = Field(default=None, gt=0, description="Requests a second.")
    burst: int = Field(default=10, ge=1, description="Requests that may come at once.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in work at a time.")
    admin: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.secret is None) == (self.sha256 is None):
            raise ValueError("needs secret or sha256, and not both")
        return self

    @property
    def digest(self) -> bytes:
        """What a presented key's digest is compared with."""
        if self.secret is not None:
            return _digest(self.secret.get_secret_value())
        return bytes.fromhex(self.sha256 or "")


class Caller:
    """A key by its name: what it may do, and what it has in work."""

    def __init__(self, name: str, entry: KeyEntry) -> None:
        self.name = name
        self.admin = entry.admin
        self.digest = entry.digest
        self.limits = Limits(entry.rate, entry.burst, entry.concurrency)


class KeyRing:
    """Every key. Without any, everybody may draw, but nobody may call what needs an admin key."""

    def __init__(self, callers: list[Caller]) -> None:
        self._callers = callers
        self.is_open = not any(not caller.admin for caller in callers)
        """Whether drawing needs no key."""
        self.anonymous = Caller(ANONYMOUS, KeyEntry(sha256="0" * 64))

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The keys that the settings name. Raises SettingsError."""
        entries = dict(_from_environment(settings))
        if settings.api_keys_file is not None:
            entries |= _from_file(settings.api_keys_file)
        return cls([Caller(name, entry) for name, entry in entries.items()])

    def find(self, presented: str) -> Caller | None:
        """The caller with this key. Takes the same time whichever it is, and if it is none."""
        digest, found = _digest(presented), None
        for caller in self._callers:
            if hmac.compare_digest(caller.digest, digest):
                found = caller
        return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _from_environment(settings: Settings) -> list[tuple[str, KeyEntry]]:
    listed = settings.api_keys.get_secret_value() if settings.api_keys else ""
    pairs = [pair.strip().partition("=") for pair in listed.split(",") if pair.strip()]
    entries = [(name, _entry(name, {"secret": secret})) for name, _, secret in pairs]
    if settings.admin_key:
        entries.append(("admin", _entry("admin", {"secret": settings.admin_key, "admin": True})))
    return entries


def _from_file(path: Path) -> dict[str, KeyEntry]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read the API keys in {str(path)!r}: {error}") from None
    return {name: _entry(name, table) for name, table in tables.items()}


class _Named(BaseModel):
    name: _Name
    entry: KeyEntry


def _entry(name: str, values: object) -> KeyEntry:
    try:
        return _Named.model_validate({"name": name, "entry": values}).entry
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # which may be the secret
        field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        raise SettingsError(f"the API key {name[:40]!r} has a wrong {field}: {first['msg']}") from None
