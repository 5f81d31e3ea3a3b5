"""What a server tells about itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A loaded model and what can be asked of it.

    Attributes:
        id: its name.
        family: whose architecture it has.
        device: what it runs on.
        precision: the number format of its weights.
        description: what it is, in words.
        sizes: supported sizes as `WIDTHxHEIGHT`, the default first.
        size_rule: the supported sizes in words.
        steps: supported step counts.
        guided_steps: those of them that take `guidance`.
        max_prompt_tokens: the longest prompt.
        adapters: names that `adapter` may have.
        vocabulary: the words a narrow model knows; empty for a general one.
        examples: prompts to begin with; may be empty.

    Example:
        >>> from twinshot import Client
        >>> (model,) = Client().models()
        >>> model.sizes, model.steps
        (['64x48', '32x32'], [1, 2, 4])
    """

    model_config = ConfigDict(frozen=True)

    id: str
    family: str
    device: str
    precision: str
    description: str = ""
    sizes: list[str]
    size_rule: str
    steps: list[int]
    guided_steps: list[int] = []
    max_prompt_tokens: int
    adapters: list[str] = []
    vocabulary: dict[str, Any] = {}
    examples: list[str] = []


class ModelList(BaseModel):
    """The body of `GET /v1/models`."""

    data: list[Model]


class Health(BaseModel):
    """The state of a server.

    Attributes:
        status: `starting`, `ready`, `draining`, `restarting` or `failed`.
        reason: what it is doing instead, or why it failed.
        version: the server's version.
        model: the name of the loaded model.
        waiting: pictures that wait for an engine.
        running: pictures that are being drawn or encoded.
        predicted_wait_ms: when an engine would begin with a request that came now.

    Example:
        >>> from twinshot import Client
        >>> health = Client().health()
        >>> health.status, health.waiting
        ('ready', 0)
    """

    model_config = ConfigDict(frozen=True)

    status: str
    reason: str | None = None
    version: str
    model: str | None = None
    waiting: int = 0
    running: int = 0
    predicted_wait_ms: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome.

        Example:
            >>> from twinshot import Client
            >>> Client().health().is_ready
            True
        """
        return self.status == "ready"
