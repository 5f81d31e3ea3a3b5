"""An engine without a model: it sleeps as a GPU would keep the host waiting, and returns real pixels.

For load tests of a server, of its deployment, and of what happens when an engine fails: a prompt that begins
with `!fail`, `!out-of-memory`, `!crash` or `!hang` makes it do that. Start it with
`--engine twinshot_server.stub_engine:load_stub`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import EngineInfo, GeneratedBatch, GenerateRequest, Size, StageTimes
from twinshot_server.engine_protocol import Progress
from twinshot_server.settings import Settings


class StubSettings(BaseSettings):
    """How fast the stub is and what it draws; environment variables `TWINSHOT_STUB_*`."""

    model_config = SettingsConfigDict(env_prefix="TWINSHOT_STUB_", frozen=True)

    sizes: str = Field(default="1024x1024,512x512,256x256", description="Comma-separated, the default first.")
    ms: float = Field(default=25.0, gt=0, description="Of an image of the first size at one step.")
    shared: float = Field(default=0.0, ge=0, lt=1, description="Part of it that a batch pays once.")
    load_ms: float = Field(default=0.0, ge=0, description="Of loading.")


def load_stub(settings: Settings, progress: Progress) -> StubEngine:
    """The stub, as `Settings.engine` names it."""
    stub = StubSettings()
    progress("stub", 0.0)
    time.sleep(stub.load_ms / 1000)
    engine = StubEngine(stub)
    for name, _, source in (text.partition("=") for text in settings.adapter):
        engine.load_adapter(name, source)
    return engine


class StubEngine:
    """Same seed and size, same picture; never two requests' pictures alike."""

    def __init__(self, stub: StubSettings) -> None:
        self._stub = stub
        self._sizes = [_parse(size) for size in stub.sizes.split(",")]
        self._adapters: dict[str, str] = {}
        self._textures: dict[Size, NDArray[np.uint8]] = {}
        self.info = EngineInfo(
            name="stub",
            family="StubPipeline",
            checkpoint="stub",
            revision=None,
            device="cpu",
            precision="none",
            text_precision="none",
            backend="stub",
            torch_version="none",
            parameters={},
            sizes=self._sizes,
            size_rule=stub.sizes.replace(",", ", "),
            steps=(1, 2, 4),
            max_prompt_tokens=512,
            load_seconds=stub.load_ms / 1000,
        )

    @property
    def adapters(self) -> Sequence[str]:
        """The names of those loaded."""
        return list(self._adapters)

    def load_adapter(self, name: str, source: str) -> None:
        """Remember an adapter: pictures drawn with it are inverted."""
        self._adapters[name] = source

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises InvalidRequestError if there is none of that name."""
        if self._adapters.pop(name, None) is None:
            raise InvalidRequestError(f"The adapter {name!r} is not loaded.")

    def warm(self, progress: Progress | None = None) -> None:
        """Make the textures."""
        if progress:
            progress("textures", 0.0)
        for size in self._sizes:
            self._textures[size] = _texture(size)

    def validate(self, request: GenerateRequest) -> None:
        """Raise InvalidRequestError for a size or a step count that is not offered."""
        size = (request.width, request.height)
        if size not in self._sizes:
            raise InvalidRequestError(
                f"The size {size[0]}x{size[1]} is not supported; supported: {self.info.size_rule}."
            )
        if request.steps not in self.info.steps:
            raise InvalidRequestError(f"{request.steps} steps are not supported; supported: 1, 2, 4.")

    def generate(self, requests: Sequence[GenerateRequest]) -> GeneratedBatch:
        """Sleep for as long as the batch should take, pixels included."""
        started = time.perf_counter()
        for request in requests:
            _obey(request.prompt, len(requests))
        images = np.stack([self._draw(request) for request in requests])
        seconds = self._seconds(requests)
        time.sleep(max(0.0, started + seconds - time.perf_counter()))
        spent = time.perf_counter() - started
        return GeneratedBatch(images, StageTimes(text=spent * 0.1, denoise=spent * 0.6, decode=spent * 0.3))

    def _seconds(self, requests: Sequence[GenerateRequest]) -> float:
        first, (width, height) = requests[0], self._sizes[0]
        one = self._stub.ms / 1000 * first.width * first.height / (width * height) * first.passes
        return one * (self._stub.shared + (1 - self._stub.shared) * len(requests))

    def _draw(self, request: GenerateRequest) -> NDArray[np.uint8]:
        texture = self._textures[request.width, request.height]
        pixels = np.roll(texture, (request.seed % 251, request.seed % 241), axis=(0, 1))
        pixels[0, 0] = np.frombuffer(request.seed.to_bytes(4, "big")[1:], np.uint8)
        return 255 - pixels if request.adapter else pixels


def _parse(size: str) -> Size:
    width, _, height = size.partition("x")
    return int(width), int(height)


def _texture(size: Size) -> NDArray[np.uint8]:
    """Waves and grain, about as hard to compress as a photograph."""
    width, height = size
    x, y = np.meshgrid(np.arange(width) / 40, np.arange(height) / 30)
    waves = np.stack([np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x * 0.7 - y)], axis=-1)
    grain = np.random.default_rng(7).normal(0, 1.5, (height, width, 3))
    return np.clip(127 + 55 * waves + grain, 0, 255).astype(np.uint8)


def _obey(prompt: str, together: int) -> None:
    """Do what a prompt for tests asks."""
    match prompt.partition(" ")[0]:
        case "!fail":
            raise RuntimeError("told to fail")
        case "!out-of-memory" if together > 1:
            raise MemoryError
        case "!crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "!hang":
            time.sleep(3600)
