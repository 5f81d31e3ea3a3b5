"""Pydantic's findings as one sentence that names the value and what is accepted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

_NOT_AN_OBJECT = {"model_attributes_type", "model_type", "dict_type"}


def describe(errors: Sequence[Any], model: type[BaseModel] | None = None) -> tuple[str, str | None]:
    """The first of pydantic's errors as (sentence, field); the field is None if there is no single one.

    `model` is what was to be read, whose fields are named to those who send others.
    """
    error = errors[0]
    path = [str(part) for part in error["loc"] if part not in {"body", "path"}]
    field = _printable(".".join(path)) or None
    match error["type"]:
        case "json_invalid":
            return f"The body is not valid JSON: {error['ctx']['error']} at character {path[0]}.", None
        case "extra_forbidden":
            return (
                f"{field}: there is no such field{_known_fields(model)}.",
                field,
            )
        case "string_unicode" if field is None:
            return f"The field name {_shown(error['input'])} is not valid Unicode.", None
        case "missing" if field:
            return f"{field}: this field is required.", field
        case "value_error":
            return _own_words(str(error["ctx"]["error"]), field), field
        case kind if field is None or (kind in _NOT_AN_OBJECT and len(path) == 0):
            return (
                'The body must be a JSON object like {"prompt": "a red car"}, sent as application/json.',
                None,
            )
    reason = error["msg"][0].lower() + error["msg"][1:]
    return f"{field}: {reason}, not {_shown(error['input'])}.", field


def _known_fields(model: type[BaseModel] | None) -> str:
    names = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return f"; known are {', '.join(names)}" if names else ""


def _shown(value: object) -> str:
    """The value as it would stand in JSON, cut to a glance."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _printable(text if len(text) <= 60 else f"{text[:57]}...")


def _own_words(reason: str, field: str | None) -> str:
    """A sentence from one of our validators, which speak of the field as "is ..." or "has ..."."""
    sentence = f"{field} {reason}." if field else f"{reason[0].upper()}{reason[1:]}."
    return _printable(sentence)


def _printable(text: str) -> str:
    """The text with what cannot be written as UTF-8 (lone surrogates) spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
