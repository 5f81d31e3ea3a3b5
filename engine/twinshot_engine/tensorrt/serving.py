"""Which engines a server runs: found, verified and fitted to the wish before anything is loaded."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import EngineFilesError
from twinshot_engine.tensorrt import targets
from twinshot_engine.tensorrt.fingerprint import fingerprint
from twinshot_engine.tensorrt.library import find_library
from twinshot_engine.tensorrt.manifest import Manifest, read_manifest
from twinshot_engine.tensorrt.redirected import unread

_logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What to load, where, and how."""

    checkpoint: Checkpoint
    config: EngineConfig
    placement: Placement


def choose_engines(checkpoint: Checkpoint, config: EngineConfig) -> Choice:
    """Fit a configuration to the engines it names, whose model is loaded without weights.

    Raises:
        EngineFilesError: they are damaged or not for this checkpoint, GPU, library or wish, and falling back
            was not asked for.
        ValueError: the device does not exist.
    """
    placement = config.placement()
    if placement.engines is None:
        return Choice(checkpoint, config, placement)
    try:
        return _choose(checkpoint, config, placement, placement.engines)
    except EngineFilesError as error:
        if not config.fallback:
            raise
        _logger.warning("Serving without TensorRT: %s", error)
        other = replace(config, backend="auto", engines=None)
        return Choice(checkpoint, other, other.placement())


def _choose(checkpoint: Checkpoint, config: EngineConfig, placement: Placement, folder: Path) -> Choice:
    manifest = read_manifest(folder)
    _check_origin(manifest, checkpoint, placement)
    _check_wish(manifest, config)
    fitted = replace(config, sizes=config.sizes or manifest.sizes)
    placed = replace(placement, precision=manifest.precision)
    return Choice(replace(checkpoint, redirect=unread), fitted, placed)


def _check_origin(manifest: Manifest, checkpoint: Checkpoint, placement: Placement) -> None:
    """Compare what engines depend on with what is here."""
    target = targets.current_target(placement.device)
    if target not in manifest.targets:
        raise EngineFilesError(
            f"The engines are for {', '.join(manifest.targets)}, and this GPU is {target}."
        )
    library = find_library(manifest.library)
    if library.version != manifest.library_version:
        raise EngineFilesError(
            f"The engines are of {library.name} {manifest.library_version}, but {library.version} is here."
        )
    if fingerprint(checkpoint) != manifest.fingerprint:
        raise EngineFilesError(
            f"The engines are of another checkpoint than {checkpoint.reference!r}: they were built from "
            f"{manifest.checkpoint!r}."
        )


def _check_wish(manifest: Manifest, config: EngineConfig) -> None:
    """Compare what engines can do with what is asked for."""
    if config.precision not in ("auto", manifest.precision):
        raise EngineFilesError(f"The engines are in {manifest.precision}, not in {config.precision}.")
    if config.text_fp8:
        raise EngineFilesError("The engines have their text encoder in 16 bit, not in fp8.")
    for size in config.sizes or ():
        manifest.engine("decoder", size)
    if missing := sorted(set(config.batch_sizes) - set(manifest.batch_sizes)):
        built = ", ".join(map(str, manifest.batch_sizes))
        raise EngineFilesError(f"The engines are for batches of {built} images, not of {missing[0]}.")
