"""One TOML file a run: what is trained on what, how, for how long. Checked before anything is loaded."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from twinshot_distill.errors import TrainingError
from twinshot_distill.loop import Length
from twinshot_distill.lora import LoraSettings
from twinshot_distill.objective import Objective, split
from twinshot_distill.optimizer import OptimizerSettings
from twinshot_distill.strictness import STRICT

_Positive = Annotated[int, Field(gt=0)]
_NotNegative = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What is trained on.

    Attributes:
        kind: "folder": pictures with captions; "shards": webdataset archives; "prompts": captions alone, for
            a data-free objective; "composer": scenes of the built-in world.
        path: the folder, the folder of archives or one of them, the text file; unused by the composer.
        empty_prompt: what stands for no caption.
        count: how many samples to take at most; what the composer draws.
        cache: folder for latents and embeddings; by default `cache` in the run's folder.
        most_skipped: share of unusable samples that is put up with.
    """

    __pydantic_config__ = STRICT

    kind: Literal["folder", "shards", "prompts", "composer"]
    path: Path | None = None
    empty_prompt: str = ""
    count: _Positive | None = None
    cache: Path | None = None
    most_skipped: Annotated[float, Field(ge=0, le=1)] = 0.05

    def __post_init__(self) -> None:
        if self.kind != "composer" and self.path is None:
            raise ValueError(f"kind {self.kind!r} needs a path")
        if self.kind == "composer" and self.count is None:
            raise ValueError("kind 'composer' needs a count")


@dataclass(frozen=True, slots=True)
class SavingSettings:
    """What is kept.

    Attributes:
        steps: between states to resume from.
        keep: how many of them.
        average: decay of an average of the weights that is exported; 0 exports the weights themselves.
        merge: whether a LoRA run writes a merged checkpoint beside its adapter.
    """

    __pydantic_config__ = STRICT

    steps: _NotNegative = 500
    keep: _Positive = 2
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    merge: bool = True


@dataclass(frozen=True, slots=True)
class ReportingSettings:
    """What is told, and how often.

    Attributes:
        seconds: between reports.
        sample_seconds: between samples; 0 draws none.
        sample_steps: passes a sample takes.
        prompts: of the samples.
    """

    __pydantic_config__ = STRICT

    seconds: Annotated[float, Field(gt=0)] = 15.0
    sample_seconds: Annotated[float, Field(ge=0)] = 0.0
    sample_steps: _Positive = 1
    prompts: tuple[str, ...] = ("a red apple on a white table", "a cat beside a blue teapot")


@dataclass(frozen=True, slots=True)
class RunFile:
    """A whole run.

    Attributes:
        checkpoint: what it starts from: a folder, a Hub id, or "builtin".
        data: what it is trained on.
        length: how long.
        batch: rows a pass and process.
        accumulate: passes a step.
        size: width and height of pictures in pixels.
        precision: "bf16" computes in bf16; trained weights stay fp32 either way.
        gradient_checkpointing: recompute blocks instead of keeping what they made.
        compiled: compile the blocks.
        deterministic: use only kernels that add in a fixed order, so that a resumed run has an unbroken one's
            bits on a GPU too; false may be up to a tenth faster.
        objective: TwinFlow's settings.
        optimizer: how weights move.
        lora: train adapters instead of all weights.
        saving: what is kept.
        reporting: what is told.
        patience: steps in a row that may be not finite.
        seed: of everything random.
    """

    __pydantic_config__ = STRICT

    checkpoint: str
    data: DataSettings
    length: Length
    batch: _Positive
    accumulate: _Positive = 1
    size: tuple[_Positive, _Positive] = (512, 512)
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    compiled: bool = False
    deterministic: bool = True
    objective: Objective = field(default_factory=Objective)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    lora: LoraSettings | None = None
    saving: SavingSettings = field(default_factory=SavingSettings)
    reporting: ReportingSettings = field(default_factory=ReportingSettings)
    patience: _Positive = 10
    seed: _NotNegative = 42

    def __post_init__(self) -> None:
        split(self.batch, self.objective.shares)
        if self.data.kind == "prompts" and not self.objective.data_free:
            raise ValueError("data of kind 'prompts' has no pictures: objective.data_free must be true")
        if self.lora is not None and self.objective.guide == "start":
            raise ValueError(
                "a LoRA run has its start at hand with teacher_decay = 1: guide must be 'teacher'"
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON types, for a state of the run."""
        dumped: dict[str, Any] = TypeAdapter(RunFile).dump_python(self, mode="json")
        return dumped


def named_runs() -> dict[str, Path]:
    """The run files that come with the package, by name."""
    folder = Path(str(files("twinshot_distill"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_run(reference: str) -> Path:
    """The path of a run file, given as path or as the name of one that comes with the package.

    Raises:
        TrainingError: there is none.
    """
    path = Path(reference)
    if path.is_file():
        return path
    if reference in named_runs():
        return named_runs()[reference]
    raise TrainingError(f"There is no run file '{reference}'; built in are {', '.join(named_runs())}.")


def read_table(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        TrainingError: it cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"'{path}' cannot be read as TOML: {error}.") from error


def read_run_file(path: Path, changes: Mapping[str, Any] | None = None) -> RunFile:
    """Read and check a run file.

    Args:
        path: of the TOML file.
        changes: values by dotted names that replace the file's, such as `{"data.path": "pictures"}`.

    Raises:
        TrainingError: it cannot be read, or a setting is unknown, missing or wrong.
    """
    table = read_table(path)
    for name, value in (changes or {}).items():
        if not _put(table, name.split("."), value):
            raise TrainingError(f"'{path}': {name}: {name.rpartition('.')[0]} has no settings of its own.")
    try:
        return TypeAdapter(RunFile).validate_python(table)
    except ValidationError as error:
        raise TrainingError(f"'{path}': {_describe(error)}.") from None


def _put(table: dict[str, Any], names: list[str], value: Any) -> bool:
    """Set what names lead to; False where they lead through something that is no table."""
    for name in names[:-1]:
        if not isinstance(table := table.setdefault(name, {}), dict):
            return False
    table[names[-1]] = value
    return True


def _describe(error: ValidationError) -> str:
    """The first fault in words: where it is, what it is, and what was given."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    words = first["msg"].removeprefix("Value error, ")
    given, shown = first["input"], ""
    if first["type"] == "unexpected_keyword_argument":
        words = "there is no such setting"
    elif first["type"] != "missing" and not isinstance(given, dict):
        shown = f", not {given!r}"
    return f"{where or 'the file'}: {words[:1].lower()}{words[1:]}{shown}"
