"""What may be sent and what comes back: the truth behind `/docs`, shared by HTTP and command line."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from twinshot_server.images import ImageFormat

MAX_PROMPT_CHARACTERS = 4_000
MAX_SEED = 2**32 - 1

_UNREADABLE = {"Cc", "Cs"}  # control characters and lone surrogates
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

Dimension = Annotated[int, Field(strict=True, ge=1)]


class GenerateBody(BaseModel):
    """A request for one picture. Unknown fields are refused; types are not converted."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"prompt": "a red car left of a tree on a beach", "seed": 7}]},
    )

    prompt: str = Field(
        description=f"What to draw, in {MAX_PROMPT_CHARACTERS} characters at most; a model may take fewer."
    )
    seed: Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)] | None = Field(
        default=None,
        description="Same seed and prompt, same picture. Random if not given; `X-Seed` tells which.",
    )
    size: str | None = Field(
        default=None, description="`WIDTHxHEIGHT`, short for width and height.", examples=["256x256"]
    )
    width: Dimension | None = Field(default=None, description="In pixels, together with height.")
    height: Dimension | None = Field(default=None, description="In pixels, together with width.")
    steps: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=1, description="Forward passes: more is slower."
    )
    format: ImageFormat | None = Field(
        default=None, description="The image file's format. If not given, what `Accept` asks for, else png."
    )
    quality: Annotated[int, Field(strict=True, ge=1, le=100)] | None = Field(
        default=None, description="Of jpeg (default 95) and webp (default 90); png is lossless."
    )

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
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

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        if size is not None and not _SIZE.fullmatch(size):
            raise ValueError(f"is {size[:40]!r}; it must look like 256x256")
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
    def dimensions(self) -> tuple[int, int] | None:
        """(width, height) in pixels, or None for the model's own size."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        found = _SIZE.fullmatch(self.size or "")
        return (int(found[1]), int(found[2])) if found else None


class Timings(BaseModel):
    """Where a request's time went, in milliseconds."""

    queue: float
    text: float
    denoise: float
    decode: float
    encode: float


class GenerateResult(BaseModel):
    """The answer to `Accept: application/json`."""

    image: str = Field(description="The image file, base64.")
    format: ImageFormat
    width: int
    height: int
    seed: int
    steps: int
    request_id: str
    timings_ms: Timings


class ErrorDetail(BaseModel):
    """What went wrong, in one sentence."""

    type: str = Field(examples=["invalid_request"])
    message: str = Field(examples=["seed: input should be greater than or equal to 0, not -1."])
    param: str | None = Field(
        default=None, description="The field at fault, where there is one.", examples=["seed"]
    )


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Health(BaseModel):
    """The state of the server."""

    status: Literal["starting", "ready", "failed"]
    reason: str | None = Field(description="Why it failed.")
    version: str
    model: str | None = Field(description="The name of the loaded model.")
    waiting: int = Field(description="Requests that wait for the engine.")
    running: int = Field(description="Requests that are being drawn.")


class Model(BaseModel):
    """A loaded model and what can be asked of it."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "twinshot"
    family: str
    device: str
    precision: str
    description: str
    sizes: list[str] = Field(description="Supported sizes, the default first.", examples=[["256x256"]])
    size_rule: str = Field(description="The supported sizes in words.")
    steps: list[int]
    max_prompt_tokens: int
    vocabulary: dict[str, Any] = Field(description="The words a narrow model knows; empty for a general one.")


class ModelList(BaseModel):
    """The models this server offers: one."""

    object: Literal["list"] = "list"
    data: list[Model]
