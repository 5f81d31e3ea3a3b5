"""How pydantic checks the settings that are plain dataclasses, since not all who train have pydantic."""

from typing import Any

STRICT: Any = {"extra": "forbid"}
"""A dataclass's `__pydantic_config__`: settings that do not exist are refused."""
