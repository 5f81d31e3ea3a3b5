"""The steps of a build, each journalled when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter

from twinshot_engine.families.model import Model
from twinshot_engine.tensorrt.builder import Order, Profile, build_engine
from twinshot_engine.tensorrt.check import Reference, check_onnx, compare_precision, make_reference
from twinshot_engine.tensorrt.disk import hash_file, remove, replaced
from twinshot_engine.tensorrt.export import GRAPH, OPSET, export_stage
from twinshot_engine.tensorrt.journal import Journal, key_of
from twinshot_engine.tensorrt.library import Library
from twinshot_engine.tensorrt.manifest import TRANSFORMER, EngineFacts, Manifest
from twinshot_engine.tensorrt.quantize import find_peaks, quantize_graph, quantized
from twinshot_engine.tensorrt.rules import rewrite
from twinshot_engine.tensorrt.source import Source
from twinshot_engine.tensorrt.stages import Stage, export_stages

Report = Callable[[str, float], None]
"""Receives what is going on and how much of everything is done, 0 to 1."""

_READER = TypeAdapter(EngineFacts)


class Versions(NamedTuple):
    """What engines depend on beside the checkpoint."""

    library: Library
    targets: tuple[str, ...]
    precision: str
    batch_sizes: tuple[int, ...]


class Steps:
    """Does the steps of one build, and knows which were done before."""

    def __init__(self, source: Source, versions: Versions, folder: Path, report: Report) -> None:
        self._source, self._versions, self._folder = source, versions, folder
        self._report = report
        self._work = folder / "work"
        self._journal = Journal(folder / "journal.json")
        self._done, self._total = 0, 1

    def expect(self, stages: Sequence[Stage], *, check: bool) -> None:
        """Count the steps that are left, for the progress bar."""
        unchecked = [each for each in stages if check and self._found("check", each) is None]
        checked_too = unchecked if self._versions.precision == "fp32" else []
        left = [each for each in stages if not self._exported(each) and each not in checked_too]
        self._total = len(unchecked) + len(left) + len(stages)

    def engine(self, stage: Stage) -> EngineFacts | None:
        """The engine of a stage, if it was built from the same and nobody touched it."""
        facts = self._journal.find(f"engine {stage.name}", self._engine_key(stage))
        if facts is None:
            return None
        engine = _READER.validate_python(facts)
        path = self._folder / engine.file
        return engine if path.is_file() and hash_file(path) == engine.sha256 else None

    def check(self, stages: Sequence[Stage]) -> None:
        """Compare stages exported in fp32 with torch, and keep what other precisions are compared with."""
        wanted = {each.name for each in stages if self._found("check", each) is None}
        with self._loaded("fp32", wanted) as found:
            for stage, model in found:
                self._check(stage, model)

    def export(self, stages: Sequence[Stage]) -> None:
        """Export stages in the precision that is asked for."""
        wanted = {each.name for each in stages if not self._exported(each)}
        with self._loaded(self._versions.precision, wanted) as found:
            for stage, model in found:
                self._export(stage, model)

    def build(self, stage: Stage) -> None:
        """Build the engine of an exported stage."""
        self._tell(f"{stage.name}: engine")
        started = time.perf_counter()
        file = self._folder / f"{stage.name}.engine"
        order = Order(self._graph(stage), self._profiles(stage), self._versions.targets, self._timings)
        with replaced(file) as part, part.open("wb") as out:
            inputs, outputs = build_engine(self._versions.library, order, out, self._inner(stage))
        checked = self._found("check", stage) or {}
        exported = self._found("export", stage) or {}
        facts = EngineFacts(
            file=file.name,
            stage=stage.kind,
            size=stage.size,
            bytes=file.stat().st_size,
            sha256=hash_file(file),
            inputs=inputs,
            outputs=outputs,
            onnx_error=checked.get("onnx_error"),
            precision_error=exported.get("precision_error"),
            export_seconds=round(checked.get("seconds", 0.0) + exported.get("seconds", 0.0), 2),
            build_seconds=round(time.perf_counter() - started, 2),
        )
        self._journal.keep(f"engine {stage.name}", self._engine_key(stage), asdict(facts))
        self._done += 1

    def manifest(self, stages: Sequence[Stage]) -> Manifest:
        """Tell of the engines of all stages, every one of which is built."""
        source, versions = self._source, self._versions
        engines = [facts for stage in stages if (facts := self.engine(stage))]
        return Manifest(
            checkpoint=source.checkpoint.reference,
            fingerprint=source.fingerprint,
            family=source.checkpoint.family,
            precision=versions.precision,
            targets=versions.targets,
            library=versions.library.name,
            library_version=versions.library.version,
            sizes=source.sizes,
            batch_sizes=versions.batch_sizes,
            tokens=source.tokens,
            versions=_versions(),
            engines=tuple(engines),
        ).sealed()

    def clear(self, *, keep_onnx: bool) -> None:
        """Remove what only the build needed; exports that are kept save the next build theirs."""
        remove(self._work)
        if not keep_onnx:
            remove(self._folder / "onnx")

    @property
    def _timings(self) -> Path:
        return self._folder / "timing.cache"

    def _check(self, stage: Stage, model: Model) -> None:
        started = time.perf_counter()
        # What is checked in fp32 need not be exported in it again.
        final = self._versions.precision == "fp32"
        folder = self._graph(stage).parent if final else self._work / "check" / stage.name
        error = check_onnx(export_stage(stage, folder), stage, model)
        make_reference(stage, model).write(self._reference(stage))
        if final:
            self._keep("export", stage, precision_error=0.0, seconds=0.0)
        else:
            remove(folder)
        self._keep("check", stage, onnx_error=error, seconds=time.perf_counter() - started)

    def _export(self, stage: Stage, model: Model) -> None:
        started = time.perf_counter()
        quantizes = self._versions.precision == "fp8" and stage.kind == TRANSFORMER
        peaks = find_peaks(stage, model) if quantizes else {}

        def change(graph: Any) -> None:
            rewrite(graph)
            quantize_graph(graph, peaks)

        export_stage(stage, self._graph(stage).parent, change)
        error = None
        if self._reference(stage).is_file():
            with quantized(stage, peaks):
                error = compare_precision(Reference.read(self._reference(stage)), stage)
        self._keep("export", stage, precision_error=error, seconds=time.perf_counter() - started)

    def _graph(self, stage: Stage) -> Path:
        return self._folder / "onnx" / stage.name / GRAPH

    def _reference(self, stage: Stage) -> Path:
        return self._work / "reference" / f"{stage.name}.safetensors"

    def _exported(self, stage: Stage) -> bool:
        return self._found("export", stage) is not None and self._graph(stage).is_file()

    @contextmanager
    def _loaded(self, precision: str, wanted: set[str]) -> Iterator[Iterator[tuple[Stage, Model]]]:
        """Load the model if any stage is wanted, and let go of it and its files afterwards."""
        folder = self._work / f"weights-{precision}"
        if wanted:
            self._tell(f"weights in {precision}")
            model = self._source.load(precision, folder)
            yield self._each(model, precision, wanted)
            del model
        else:
            yield iter(())
        remove(folder)

    def _each(self, model: Model, precision: str, wanted: set[str]) -> Iterator[tuple[Stage, Model]]:
        for stage in export_stages(model, self._source.sizes):
            if stage.name in wanted:
                self._tell(f"{stage.name}: export in {precision}")
                yield stage, model
                self._done += 1

    def _profiles(self, stage: Stage) -> list[Profile]:
        buckets = stage.buckets
        lengths = [buckets.length(index) for index in (0, min(1, buckets.amount - 1), buckets.amount - 1)]
        return [
            Profile(*({port.name: port.shape(batch, tokens) for port in stage.inputs} for tokens in lengths))
            for batch in self._versions.batch_sizes
        ]

    def _found(self, step: str, stage: Stage) -> Any:
        return self._journal.find(f"{step} {stage.name}", self._key(step, stage))

    def _keep(self, step: str, stage: Stage, **facts: Any) -> None:
        self._journal.keep(f"{step} {stage.name}", self._key(step, stage), facts)

    def _key(self, step: str, stage: Stage) -> str:
        precision = "fp32" if step == "check" else self._versions.precision
        return key_of(
            checkpoint=self._source.fingerprint, stage=stage.name, precision=precision, versions=_versions()
        )

    def _engine_key(self, stage: Stage) -> str:
        versions = self._versions
        return key_of(
            exported=self._key("export", stage),
            library=[versions.library.name, versions.library.version],
            targets=versions.targets,
            batch_sizes=versions.batch_sizes,
        )

    def _tell(self, what: str, inside: float = 0.0) -> None:
        self._report(what, (self._done + inside) / self._total)

    def _inner(self, stage: Stage) -> Report:
        return lambda phase, fraction: self._tell(f"{stage.name}: {phase.lower()}", fraction)


def _versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "opset": str(OPSET)}
