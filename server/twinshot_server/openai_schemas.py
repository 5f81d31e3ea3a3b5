"""OpenAI's images API: every standard field, and a few of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from twinshot_engine.types import EngineInfo, GenerateRequest
from twinshot_server.images import ImageFormat
from twinshot_server.scheduling.jobs import Priority
from twinshot_server.schemas import (
    PROMPT_SCHEMA,
    Adapter,
    DeadlineMs,
    GenerateBody,
    Guidance,
    Seed,
    Steps,
    check_prompt,
    parse_size,
)

_STEPS = {"auto": 1, "standard": 1, "low": 1, "medium": 2, "hd": 4, "high": 4}
"""Forward passes by OpenAI's `quality`; a model that cannot do so many does the most it can."""

USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Nothing is billed by tokens here; clients expect the numbers to be there."""


class ImagesBody(BaseModel):
    """The body of `POST /v1/images/generations`. null is as good as not given."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"prompt": "a red car on a beach"}]}
    )

    prompt: str = Field(description="What to draw.", json_schema_extra=PROMPT_SCHEMA)
    model: str | None = Field(default=None, description="This server has one model; any name will do.")
    n: Annotated[int, Field(strict=True, ge=1, le=10)] | None = Field(
        default=None, description="1 by default."
    )
    size: str | None = Field(default=None, description="`WIDTHxHEIGHT`, or `auto`: the model's own.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = Field(
        default=None, description="Forward passes: low, standard and auto 1, medium 2, high and hd 4."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        default=None, description="Pictures are opaque: transparent is refused."
    )
    moderation: Literal["auto", "low"] | None = Field(default=None, description="Without effect.")
    style: Literal["vivid", "natural"] | None = Field(default=None, description="Without effect.")
    user: str | None = Field(default=None, description="Without effect; neither logged nor kept.")
    output_format_: ImageFormat | None = Field(default=None, alias="output_format")
    output_compression: Annotated[int, Field(strict=True, ge=0, le=100)] | None = Field(
        default=None, description="Quality of jpeg (95 if not given) and webp (90); without effect on png."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None, description="b64_json by default; url gives a data: URL, as nothing is stored."
    )
    stream: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="Answer with events."
    )
    partial_images: Annotated[int, Field(strict=True, ge=0, le=3)] | None = Field(
        default=None, description="Accepted; one step has no partial images, so none are sent."
    )
    seed: Seed | None = Field(default=None, description="Not OpenAI's: same seed and prompt, same picture.")
    steps: Steps | None = Field(default=None, description="Not OpenAI's: forward passes, beats `quality`.")
    guidance: Guidance | None = Field(default=None, description="Not OpenAI's: see `/generate`.")
    deadline_ms: DeadlineMs | None = Field(default=None, description="Not OpenAI's: see `/generate`.")
    priority: Priority = Field(default=Priority.INTERACTIVE, description="Not OpenAI's: see `/generate`.")
    adapter: Adapter | None = Field(default=None, description="Not OpenAI's: see `/generate`.")

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        return check_prompt(prompt)

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        if size not in {None, "auto"}:
            parse_size(str(size))
        return size

    @model_validator(mode="after")
    def _check_background(self) -> Self:
        if self.background == "transparent":
            raise ValueError("background cannot be transparent here; send auto or opaque")
        return self

    @property
    def output_format(self) -> ImageFormat:
        """The image files' format."""
        return self.output_format_ or ImageFormat.PNG

    @property
    def file_quality(self) -> int | None:
        """Quality of the image file, 1 to 100, where it has one and the client chose it."""
        return None if self.output_compression is None else max(1, self.output_compression)

    def requests(self, info: EngineInfo) -> list[GenerateRequest]:
        """One request to the engine for each picture."""
        size = None if self.size == "auto" else self.size
        body = GenerateBody(
            prompt=self.prompt,
            n=self.n or 1,
            seed=self.seed,
            size=size,
            steps=self.steps or self._steps(info),
            adapter=self.adapter,
            guidance=self.guidance or 1.0,
        )
        return body.requests(info.sizes[0])

    def echo(self, request: GenerateRequest) -> dict[str, Any]:
        """What the answer repeats of the request."""
        return {
            "background": "opaque",
            "output_format": self.output_format.value,
            "quality": self.quality or "auto",
            "size": f"{request.width}x{request.height}",
        }

    def _steps(self, info: EngineInfo) -> int:
        wanted = _STEPS[self.quality or "auto"]
        return max((count for count in info.steps if count <= wanted), default=info.steps[0])


class ImageData(BaseModel):
    """One picture of the answer."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(
        default=None, description="The prompt as it was drawn, where the model did not know a word of it."
    )


class ImagesResult(BaseModel):
    """The answer of `POST /v1/images/generations`."""

    created: int
    data: list[ImageData]
    background: str
    output_format: str
    quality: str
    size: str
    usage: dict[str, Any]
