"""How settings are checked that are plain dataclasses, since not all who train have pydantic."""

from typing import Any

STRICT: Any = {"extra": "forbid"}
"""A dataclass's `__pydantic_config__`: settings that do not exist are refused."""


def check(settings: Any, *rules: tuple[str, str, bool]) -> None:
    """Raise ValueError at the first rule that is broken: a setting, what it must be, whether it is."""
    for name, accepted, holds in rules:
        if not holds:
            raise ValueError(f"{name} {getattr(settings, name)} must be {accepted}")
