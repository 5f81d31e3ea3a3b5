"""What may be sent: the truth behind `/docs`, shared by HTTP, WebSocket and command line."""

from __future__ import annotations

import re
import secrets
import unicodedata
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from twinshot_engine.types import GenerateRequest, Size
from twinshot_server.images import ImageFormat
from twinshot_server.scheduling.jobs import Priority

MAX_PROMPT_CHARACTERS = 4_000
MAX_SEED = 2**32 - 1
MAX_DEADLINE_MS = 600_000

PROMPT_SCHEMA: dict[str, JsonValue] = {
    "minLength": 1,
    "maxLength": MAX_PROMPT_CHARACTERS,
    "pattern": r"\S",
}
"""What the document says of prompts; `check_prompt` refuses in better words than a schema would."""
SIZE_PATTERN = "^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"

_UNREADABLE = {"Cc", "Cs"}  # control characters and lone surrogates
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

Dimension = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Steps = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=64)]
DeadlineMs = Annotated[int, Field(strict=True, ge=1, le=MAX_DEADLINE_MS)]
Guidance = Annotated[float, Field(strict=True, ge=1, le=20, allow_inf_nan=False)]
Adapter = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def check_prompt(prompt: str) -> str:
    """The prompt, if it is text. Raises ValueError with what is wrong."""
    if not prompt.strip():
        raise ValueError("is empty; say in words what to draw")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are accepted")
    for place, character in enumerate(prompt):
        if unicodedata.category(character) in _UNREADABLE and character not in "\t\n\r":
            raise ValueError(
                f"has the unreadable character U+{ord(character):04X} at position {place}; remove it"
            )
    return prompt


def parse_size(size: str) -> Size:
    """Width and height of `256x256`. Raises ValueError with what is wrong."""
    found = _SIZE.fullmatch(size)
    if found is None:
        raise ValueError(f"is {size[:40]!r}; it must look like 256x256")
    return int(found[1]), int(found[2])


class GenerateBody(BaseModel):
    """A request for pictures of one prompt. Unknown fields are refused; types are not converted."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"prompt": "a red car left of a tree on a beach", "seed": 7}]},
    )

    prompt: str = Field(
        description=f"What to draw, in {MAX_PROMPT_CHARACTERS} characters at most; a model may take fewer.",
        json_schema_extra=PROMPT_SCHEMA,
    )
    n: Count = Field(default=1, description="How many pictures; their seeds count up from `seed`.")
    seed: Seed | None = Field(
        default=None,
        description="Same seed and prompt, same picture. Random if not given; `X-Seed` tells which.",
    )
    size: str | None = Field(
        default=None,
        description="`WIDTHxHEIGHT`, short for width and height.",
        examples=["256x256"],
        json_schema_extra={"pattern": SIZE_PATTERN},
    )
    width: Dimension | None = Field(default=None, description="In pixels, together with height.")
    height: Dimension | None = Field(default=None, description="In pixels, together with width.")
    steps: Steps = Field(default=1, description="Forward passes: more is slower.")
    guidance: Guidance = Field(
        default=1.0,
        description="How strongly each step follows the prompt, for twice the time; only step counts that "
        "`guided_steps` of `/v1/models` lists take more than 1, which is none.",
    )
    format: ImageFormat | None = Field(
        default=None, description="The image files' format. If not given, what `Accept` asks for, else png."
    )
    quality: Annotated[int, Field(strict=True, ge=1, le=100)] | None = Field(
        default=None, description="Of jpeg (default 95) and webp (default 90); png is lossless."
    )
    deadline_ms: DeadlineMs | None = Field(
        default=None, description="Refuse at once what would take longer; the server's limit if not given."
    )
    priority: Priority = Field(
        default=Priority.INTERACTIVE, description="`batch` lets interactive requests pass, and still gets on."
    )
    adapter: Adapter | None = Field(default=None, description="The name of a loaded adapter.")
    stream: bool = Field(default=False, strict=True, description="Answer with server-sent events.")

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        return check_prompt(prompt)

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        if size is not None:
            parse_size(size)
        return size

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together; give both or neither")
        if self.size is not None and self.width is not None:
            raise ValueError("size and width with height say the same; give one of them")
        if self.quality is not None and self.format is ImageFormat.PNG:
            raise ValueError("quality is for jpeg and webp; png is lossless, so leave it out")
        return self

    @property
    def dimensions(self) -> Size | None:
        """(width, height) in pixels, or None for the model's own size."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        return parse_size(self.size) if self.size else None

    def requests(self, default_size: Size) -> list[GenerateRequest]:
        """One request to the engine for each picture; a random seed where none is named."""
        width, height = self.dimensions or default_size
        first = secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed
        return [
            GenerateRequest(self.prompt, seed, width, height, self.steps, self.adapter, self.guidance)
            for seed in seeds_from(first, self.n)
        ]


def seeds_from(first: int, count: int) -> list[int]:
    """`count` seeds that count up from `first` and go on at 0 after the last."""
    return [(first + offset) % (MAX_SEED + 1) for offset in range(count)]
