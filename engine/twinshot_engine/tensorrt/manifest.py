"""What a folder of engines is: made by ``twinshot build``, verified before anything is served from it.

``manifest.json`` is written last and at once, so a folder that has one is complete. It carries a checksum of
itself and of each engine. Checksums find damage and mixed-up files; they are no signature, so serve only
engines that you or somebody you trust has built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.files import quoted, tell
from twinshot_engine.tensorrt.disk import hash_file, write_whole
from twinshot_engine.types import Size

FILE = "manifest.json"
FORMAT = 1

TEXT, TRANSFORMER, DECODER = "text", "transformer", "decoder"
"""The stages of a model that there are engines for."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One input or output of an engine.

    Attributes:
        name: as in the ONNX graph.
        type: torch's name for its type, such as ``bfloat16``.
        shape: -1 stands for what the profile in use decides.
        profiles: for inputs, least, usual and largest shape in each profile.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine: a stage at a size, for every advertised batch size and prompt length.

    Attributes:
        file: its name in the folder.
        stage: ``text``, ``transformer`` or ``decoder``.
        size: width and height in pixels; None for the text encoder.
        bytes: of the file.
        sha256: of the file.
        inputs: in order.
        outputs: in order.
        onnx_error: largest relative difference between onnxruntime and torch, both fp32; None if not checked.
        precision_error: the same between the engine's precision and fp32, both torch; None if not checked.
        export_seconds: from the model to a checked ONNX file.
        build_seconds: from there to the engine.
    """

    file: str
    stage: str
    size: Size | None
    bytes: int
    sha256: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    onnx_error: float | None
    precision_error: float | None
    export_seconds: float
    build_seconds: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """A complete folder of engines.

    Attributes:
        checkpoint: the reference they were built from.
        fingerprint: of that checkpoint; see :func:`~twinshot_engine.tensorrt.fingerprint.fingerprint`.
        family: the pipeline class.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``fp8``.
        targets: GPUs as ``sm_89``.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        library_version: whole.
        sizes: that there are engines for, default first.
        batch_sizes: that there are profiles for.
        tokens: padded prompt lengths, shortest first.
        versions: of what exported: twinshot, torch, onnx.
        engines: all of them.
        format: of this file.
        checksum: of everything else.
    """

    checkpoint: str
    fingerprint: str
    family: str
    precision: str
    targets: tuple[str, ...]
    library: str
    library_version: str
    sizes: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    tokens: tuple[int, ...]
    versions: Mapping[str, str]
    engines: tuple[EngineFacts, ...]
    format: int = FORMAT
    checksum: str = ""

    def engine(self, stage: str, size: Size | None = None) -> EngineFacts:
        """Look up an engine.

        Raises:
            EngineFilesError: there is none for that size.
        """
        for each in self.engines:
            if (each.stage, each.size) == (stage, size):
                return each
        built = ", ".join(f"{width}x{height}" for width, height in self.sizes)
        wanted = f" of {size[0]}x{size[1]}" if size else ""
        raise EngineFilesError(f"No engine was built for the {stage}{wanted}: sizes {built} were.")

    def sealed(self) -> Manifest:
        """This manifest with its checksum."""
        content = json.dumps({**asdict(self), "checksum": ""}, sort_keys=True)
        return replace(self, checksum=hashlib.sha256(content.encode()).hexdigest())

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` at once, or not at all.

        Raises:
            EngineFilesError: the disk is full.
        """
        write_whole(folder / FILE, json.dumps(asdict(self.sealed()), indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest and check that nobody changed it.

    Raises:
        EngineFilesError: it is missing, damaged, changed or of another format.
    """
    # Only those who have engines need it.
    from pydantic import TypeAdapter, ValidationError

    path = folder / FILE
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EngineFilesError(
            f"{quoted(path)} is missing: 'twinshot build' writes it when it is done."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineFilesError(f"{quoted(path)} is not readable JSON: {tell(error)}.") from error
    if isinstance(content, Mapping) and content.get("format") != FORMAT:
        raise EngineFilesError(
            f"{quoted(path)} has format {content.get('format')!r}, not {FORMAT}: build again."
        )
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise EngineFilesError(f"{quoted(path)} is damaged at {where or 'its top'!r}: build again.") from None
    if manifest.sealed().checksum != manifest.checksum:
        raise EngineFilesError(f"{quoted(path)} was changed after it was written: build again.")
    return manifest


def verify_engine(folder: Path, facts: EngineFacts) -> bytes:
    """Read an engine's file, which must be the one that was built.

    Raises:
        EngineFilesError: it is missing, cut off or another one.
    """
    if Path(facts.file).name != facts.file or facts.file == "..":
        raise EngineFilesError(f"The manifest names {facts.file!r}, which is not a file in its folder.")
    path = folder / facts.file
    try:
        size = path.stat().st_size
        if size == facts.bytes and hash_file(path) == facts.sha256:
            return path.read_bytes()
    except OSError as error:
        raise EngineFilesError(f"{quoted(path)} cannot be read: {tell(error)}.") from error
    found = (
        f"has {size} bytes, not {facts.bytes}" if size != facts.bytes else "was changed after it was built"
    )
    raise EngineFilesError(f"{quoted(path)} {found}: build again.")
