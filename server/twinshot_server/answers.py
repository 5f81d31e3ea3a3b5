"""What comes back: the bodies of answers, as `/docs` describes them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from twinshot_engine.types import StageTimes
from twinshot_server.images import ImageFormat


class Timings(BaseModel):
    """Where a picture's time went, in milliseconds."""

    queue: float
    text: float
    denoise: float
    decode: float
    encode: float

    @classmethod
    def of(cls, times: StageTimes) -> Self:
        """From the engine's seconds."""
        return cls(**{stage: round(seconds * 1000, 3) for stage, seconds in asdict(times).items()})

    def header(self) -> str:
        """As `Server-Timing` has it."""
        return ", ".join(f"{stage};dur={ms}" for stage, ms in self)


class UnknownWord(BaseModel):
    """A word of the prompt that the model was never taught."""

    word: str = Field(description="As the prompt has it.", examples=["lions"])
    nearest: str | None = Field(
        description="The known words that were drawn in its place; null where nothing is alike.",
        examples=["tigers"],
    )


class ImageResult(BaseModel):
    """One picture of an answer in JSON or events."""

    image: str = Field(description="The image file, base64.")
    index: int = Field(description="Its place among the n that were asked for, from 0.")
    seed: int
    batch: int = Field(description="How many pictures shared its forward pass.")
    timings_ms: Timings


class GenerateResult(BaseModel):
    """The answer to `Accept: application/json`."""

    images: list[ImageResult]
    format: ImageFormat
    width: int
    height: int
    steps: int
    unknown_words: list[UnknownWord] = Field(
        description="Words that a narrow model was never taught; empty for a general one."
    )
    request_id: str


class Problem(BaseModel):
    """A problem detail (RFC 9457)."""

    type: str = Field(examples=["urn:twinshot:problem:invalid_request"])
    title: str
    status: int
    detail: str = Field(examples=["seed: input should be greater than or equal to 0, not -1."])
    code: str = Field(description="For programs.", examples=["invalid_request"])
    param: str | None = Field(description="The field at fault, where there is one.", examples=["seed"])
    request_id: str


class OpenAIErrorDetail(BaseModel):
    """What went wrong, as OpenAI tells it."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """The body of every answer under `/v1` that is not a success."""

    error: OpenAIErrorDetail


class Health(BaseModel):
    """The state of the server."""

    status: Literal["starting", "ready", "draining", "restarting", "failed"]
    reason: str | None = Field(description="What it is doing instead, or why it failed.")
    version: str
    model: str | None = Field(description="The name of the loaded model.")
    waiting: int = Field(description="Pictures that wait for an engine.")
    running: int = Field(description="Pictures that are being drawn or encoded.")
    predicted_wait_ms: float = Field(description="When an engine would begin with a request that came now.")


class Model(BaseModel):
    """A loaded model and what can be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "twinshot"
    family: str
    device: str
    precision: str
    description: str
    sizes: list[str] = Field(description="Supported sizes, the default first.", examples=[["256x256"]])
    size_rule: str = Field(description="The supported sizes in words.")
    steps: list[int]
    guided_steps: list[int] = Field(description="The step counts that take `guidance`.")
    max_prompt_tokens: int
    adapters: list[str] = Field(description="Adapters that requests may name.")
    vocabulary: dict[str, Any] = Field(
        description="The words a narrow model knows; empty for a general one, or if not wanted."
    )
    examples: list[str] = Field(description="Prompts to begin with; may be empty.")


class ModelList(BaseModel):
    """The models this server offers: one."""

    object: Literal["list"] = "list"
    data: list[Model]


def describe_problem(description: str) -> dict[str, Any]:
    """An entry of a route's `responses`."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {"description": description, "content": content}
