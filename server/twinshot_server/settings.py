"""Every setting of the server in one frozen object.

Each field can be given as an environment variable: `TWINSHOT_` and the field's name in capitals,
for example `TWINSHOT_PORT=9000`. Command line options win over the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from twinshot_engine.types import Size

Precision = Literal["auto", "fp32", "bf16", "fp8"]
Backend = Literal["auto", "eager", "fused", "tensorrt"]
Memory = Literal["normal", "low"]
Batching = Literal["exact", "fast"]
LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


_MOST_REPLICAS = 64


class SettingsError(Exception):
    """A setting asks for what this machine does not have; the message names it and what is accepted."""


def _read_replicas(value: object) -> object:
    text = str(value)
    if text == "auto":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_REPLICAS:
        raise ValueError(f"is {text!r}, not 'auto' or a whole number from 1 to {_MOST_REPLICAS}")
    return int(text)


Replicas = Annotated[int | Literal["auto"], BeforeValidator(_read_replicas)]


class Settings(BaseSettings):
    """What to load, where to listen, and how much to accept."""

    model_config = SettingsConfigDict(env_prefix="TWINSHOT_", frozen=True)

    checkpoint: str = Field(
        default="builtin",
        description="'builtin', a folder, a safetensors or GGUF file, or a Hugging Face Hub id.",
    )
    base: str | None = Field(
        default=None, description="A checkpoint that supplies the parts which the other one lacks."
    )
    adapter: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="A LoRA: name=path[:scale] for requests to choose, path[:scale] to merge it for good.",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:<index>.")
    precision: Precision = Field(default="auto", description="Number format of weights and activations.")
    text_fp8: bool = Field(default=False, description="Keep the text encoder in fp8 too.")
    memory: Memory = Field(
        default="normal", description="low: fp8 wherever nothing else is chosen, and one picture a pass."
    )
    backend: Backend = Field(
        default="auto",
        description="fused replays CUDA graphs, tensorrt runs --engines; auto is what is there on a GPU.",
    )
    engines: str | None = Field(default=None, description="Folder of engines that 'twinshot build' made.")
    fallback: bool = Field(default=False, description="Serve without engines that cannot be used here.")
    sizes: str = Field(
        default="",
        pattern=r"^(\d+x\d+(,\d+x\d+)*)?$",
        description="Sizes to be fast at, as 1024x1024,512x512, default first; else the model's own.",
    )
    steps: str = Field(
        default="1,2,4",
        pattern=r"^((few|any|multi):)?\d{1,4}(,((few|any|multi):)?\d{1,4})*$",
        description="Step counts to offer, comma-separated; any:8 and multi:30 name their schedules.",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; every core if not given.")
    replicas: Replicas = Field(
        default=1, description="Engine processes behind one HTTP front: a number, or auto for one a GPU."
    )
    replica: int = Field(default=0, ge=0, description="Which of them this is; the server sets it.")
    batching: Batching = Field(
        default="exact",
        description="exact: a picture never depends on its neighbours; fast: forward passes are shared "
        "where that was measured to pay.",
    )
    max_batch: int = Field(default=8, ge=1, le=64, description="Most pictures in one forward pass, if fast.")
    engine: str = Field(
        default="twinshot_server.loading:load_engine",
        pattern=r"^[\w.]+:\w+$",
        description="module:function that makes the engine.",
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    max_queue: int = Field(default=64, ge=1, description="Most pictures that may wait; one more gets a 429.")
    max_images: int = Field(default=10, ge=1, le=64, description="Most pictures in one request.")
    max_body_bytes: int = Field(default=65_536, ge=1, description="Largest accepted request body.")
    body_seconds: float = Field(default=10, gt=0, description="How long a request may take to arrive.")
    deadline_ms: int = Field(
        default=60_000, ge=1, description="How long a request may take that names no deadline."
    )
    encoder_threads: int | None = Field(
        default=None, ge=1, description="Image files made at a time; a core each, 4 at most, if not given."
    )

    engine_restarts: int = Field(
        default=5, ge=0, description="Restarts of a failing engine in 10 minutes, before the server gives up."
    )
    hang_seconds: float = Field(default=60, gt=0, description="Silence of an engine that counts as a hang.")
    drain_seconds: float = Field(
        default=5, ge=0, description="How long SIGTERM leaves the server serving, unready, before it stops."
    )
    shutdown_seconds: int = Field(default=30, ge=0, description="How long a stop waits for running requests.")

    api_keys_file: Path | None = Field(default=None, description="TOML file of API keys and their limits.")
    api_keys: SecretStr | None = Field(default=None, description="API keys: name=secret, comma-separated.")
    admin_key: SecretStr | None = Field(default=None, description="Key of the calls under /admin.")
    cors_origins: str = Field(
        default="", description="Web origins whose pages may call, comma-separated; none if not given."
    )
    vllm_metrics: bool = Field(
        default=False, description="Show queue gauges under vLLM's names too, for routers that read those."
    )
    log_level: LogLevel = Field(default="info", description="Least severe log line that is written.")
    log_format: LogFormat = Field(default="auto", description="auto is text on a terminal, JSON elsewhere.")

    @field_validator("adapter", mode="before")
    @classmethod
    def _split_adapters(cls, value: object) -> object:
        """One variable of the environment holds all of them, with blanks between."""
        return value.split() if isinstance(value, str) else value or ()

    @property
    def largest_batch(self) -> int:
        """Most pictures that may share a forward pass."""
        return self.max_batch if self.batching == "fast" else 1

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes whose cost is measured: powers of two, and the largest."""
        powers = [2**power for power in range(7) if 2**power < self.largest_batch]
        return (*powers, self.largest_batch)

    @property
    def listed_sizes(self) -> tuple[Size, ...] | None:
        """`sizes` as (width, height), or None for the model's own."""
        if not self.sizes:
            return None
        sides = [size.partition("x") for size in self.sizes.split(",")]
        return tuple((int(width), int(height)) for width, _, height in sides)

    @property
    def origins(self) -> list[str]:
        """`cors_origins` as a list."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]


DEFAULTS = Settings.model_construct()
"""The settings where nobody sets anything, whatever the environment says."""
