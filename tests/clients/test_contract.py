"""The client knows the HTTP API alone; these hold it to the server's own declarations."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

import twinshot
from twinshot import Health, Model, Options, Timings
from twinshot import _errors as errors
from twinshot._options import Format, Priority
from twinshot._realtime import _HEADER
from twinshot_server import answers
from twinshot_server.app import create_app
from twinshot_server.images import ImageFormat
from twinshot_server.routes import realtime
from twinshot_server.scheduling.jobs import Priority as ServerPriority
from twinshot_server.schemas import MAX_SEED, GenerateBody


def test_every_field_of_a_request_can_be_asked_for() -> None:
    assert {"prompt", "n", "stream", *Options.__annotations__} == set(GenerateBody.model_fields)
    assert set(Format.__args__) == {each.value for each in ImageFormat}
    assert set(Priority.__args__) == {each.value for each in ServerPriority}
    assert twinshot._options._SEEDS == MAX_SEED + 1


@pytest.mark.parametrize(
    ("ours", "theirs", "left_out"),
    [(Model, answers.Model, {"object", "created", "owned_by"}), (Health, answers.Health, set())],
)
def test_what_a_server_tells_of_itself_is_read(ours: type, theirs: type, left_out: set[str]) -> None:
    assert set(ours.model_fields) == set(theirs.model_fields) - left_out  # type: ignore[attr-defined]


def test_every_stage_is_told() -> None:
    assert [each.name for each in fields(Timings)] == list(answers.Timings.model_fields)
    assert _HEADER.format == realtime.HEADER.format


def test_every_refusal_of_the_document_has_a_class_or_the_general_one() -> None:
    paths = create_app().openapi()["paths"]
    told = {int(status) for path in ("/generate", "/v1/models") for status in _responses(paths[path])}
    general = {406, 408, 413}
    assert told - {200} <= {*errors._CLASSES, *general} | {500, 503, 504}


def _responses(path: dict[str, dict[str, dict[str, object]]]) -> list[str]:
    return [
        status for operation in path.values() for status in operation["responses"] if re.match(r"\d", status)
    ]
