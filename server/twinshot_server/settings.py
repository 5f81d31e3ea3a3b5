"""Every setting of the server in one frozen object.

Each field can be given as an environment variable: `TWINSHOT_` and the field's name in capitals,
for example `TWINSHOT_PORT=9000`. Command line options win over the environment.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Precision = Literal["auto", "fp32", "bf16"]
LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(Exception):
    """A setting asks for what this machine does not have; the message names it and what is accepted."""


class Settings(BaseSettings):
    """What to load, where to listen, and how much to accept."""

    model_config = SettingsConfigDict(env_prefix="TWINSHOT_", frozen=True)

    checkpoint: str = Field(default="builtin", description="'builtin', a folder, or a Hugging Face Hub id.")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:<index>.")
    precision: Precision = Field(default="auto", description="Number format of weights and activations.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; every core if not given.")
    max_batch: int = Field(default=8, ge=1, description="Most requests that share one forward pass.")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    max_queue: int = Field(default=64, ge=1, description="Most requests that may wait; one more gets a 429.")
    max_body_bytes: int = Field(default=65_536, ge=1, description="Largest accepted request body.")
    shutdown_seconds: int = Field(default=30, ge=0, description="How long a stop waits for running requests.")
    log_level: LogLevel = Field(default="info", description="Least severe log line that is written.")
    log_format: LogFormat = Field(default="auto", description="auto is text on a terminal, JSON elsewhere.")


DEFAULTS = Settings.model_construct()
"""The settings where nobody sets anything, whatever the environment says."""
