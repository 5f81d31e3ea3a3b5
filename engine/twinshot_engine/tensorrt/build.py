"""Build a folder of engines: check, export, build, and a manifest when all of it is done.

Steps are journalled, files appear whole or not at all, and ``manifest.json`` comes last. So whatever stops a
build, running it again goes on, and a folder with a manifest is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.tensorrt.disk import remove
from twinshot_engine.tensorrt.library import find_library
from twinshot_engine.tensorrt.manifest import FILE, Manifest
from twinshot_engine.tensorrt.source import Source
from twinshot_engine.tensorrt.stages import MOST_BATCH, Stage
from twinshot_engine.tensorrt.steps import Report, Steps, Versions
from twinshot_engine.tensorrt.targets import PRECISIONS, choose_targets
from twinshot_engine.types import Size


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What ``twinshot build`` is asked for.

    Attributes:
        checkpoint: as :attr:`twinshot_engine.config.EngineConfig.checkpoint`.
        folder: where the engines go; made if need be.
        sizes: widths and heights in pixels, default first; None for the checkpoint's own.
        batch_sizes: how many images a pass may hold; each has a profile of its own.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``fp8``.
        targets: GPUs as ``sm_89``; empty for all that one engine can be for.
        library: ``tensorrt`` or ``tensorrt_rtx``; None for what is installed.
        check: compare exported graphs with torch, which takes two copies of the weights in fp32 on disk.
        keep_onnx: leave the exported graphs in ``onnx/``, where a build for other GPUs finds them.

    Raises:
        EngineFilesError: a setting is not one of those.
    """

    checkpoint: str
    folder: Path
    sizes: tuple[Size, ...] | None = None
    batch_sizes: tuple[int, ...] = (1,)
    precision: str = "bf16"
    targets: tuple[str, ...] = ()
    library: str | None = None
    check: bool = True
    keep_onnx: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineFilesError(f"Precision {self.precision!r} is not one of {', '.join(PRECISIONS)}.")
        if 1 not in self.batch_sizes or not 1 <= min(self.batch_sizes) <= max(self.batch_sizes) <= MOST_BATCH:
            raise EngineFilesError(
                f"Batch sizes {self.batch_sizes} are not whole numbers from 1 to {MOST_BATCH}, 1 among them."
            )


def build(config: BuildConfig, report: Report) -> Manifest:
    """Build what is asked for, or what of it is missing.

    Args:
        config: the wish.
        report: called with what is going on and how much of everything is done, 0 to 1.

    Raises:
        CheckpointError: the checkpoint is damaged; as EngineFilesError, the engines cannot be built.
    """
    report("checkpoint", 0.0)
    library = find_library(config.library)
    targets = choose_targets(library, config.targets, config.precision)
    source = Source.find(config.checkpoint, config.sizes, config.batch_sizes)
    versions = Versions(library, targets, config.precision, tuple(sorted(config.batch_sizes)))
    config.folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(source, versions, config.folder, report)
    stages = source.stages()
    missing = [stage for stage in stages if steps.engine(stage) is None]
    if missing:
        # The old manifest would tell of engines that are being replaced.
        remove(config.folder / FILE)
        _make(steps, missing, config)
    manifest = steps.manifest(stages)
    manifest.write(config.folder)
    steps.clear(keep_onnx=config.keep_onnx)
    report("done", 1.0)
    return manifest


def _make(steps: Steps, stages: Sequence[Stage], config: BuildConfig) -> None:
    steps.expect(stages, check=config.check)
    if config.check:
        steps.check(stages)
    steps.export(stages)
    for stage in stages:
        steps.build(stage)
