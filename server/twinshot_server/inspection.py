"""`twinshot inspect`: what a checkpoint is and needs, from its configs and its files' headers alone.

Importing this imports torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.checkpoint import TRANSFORMER, Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families import Plan, find_family, plan
from twinshot_engine.hub import part_names
from twinshot_engine.lora import find_lora
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.weights import StoredPart
from twinshot_server.loading import engine_config
from twinshot_server.machine import device_name, free_bytes, in_words
from twinshot_server.settings import Settings

PRECISIONS = ("fp32", "bf16", "fp8")
_USUAL_PARTS = ("text_encoder", "tokenizer", "transformer", "vae")
_UNUSED_PARTS = ("scheduler",)  # the engine has schedules of its own


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the checkpoint, or of its base; `problem` is a sentence if it cannot be read."""

    name: str
    parameters: int = 0
    bytes: int = 0
    files: int = 0
    formats: tuple[str, ...] = ()
    from_base: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """Memory in one precision; `problem` says why the checkpoint cannot have it here."""

    precision: str
    chosen: bool
    weight_bytes: int = 0
    workspace_bytes: int = 0
    problem: str | None = None

    @property
    def total(self) -> int:
        """Bytes of weights and workspace."""
        return self.weight_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA that is to be loaded, or merged if `name` is None; `problem` says why it does not fit."""

    name: str | None
    source: str
    rank: int = 0
    weights: int = 0
    """How many of the transformer's weights it changes."""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a checkpoint; `problems` are what is wrong with it, a sentence each."""

    reference: str
    folder: str
    revision: str | None
    family: str
    steps: tuple[int, ...]
    device: str
    free_bytes: int | None
    parts: list[Part]
    needs: list[Need] = field(default_factory=list)
    sizes: str = ""
    max_prompt_tokens: int = 0
    few_steps: bool = False
    adapters: list[Adapter] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def need(self) -> Need | None:
        """What the chosen precision takes, if it can be told."""
        return next((each for each in self.needs if each.chosen and not each.problem), None)

    @property
    def memory(self) -> str:
        """What the chosen precision needs, and what is free."""
        needed = f"{in_words(self.need.total)} needed in {self.need.precision}, " if self.need else ""
        return f"{needed}{in_words(self.free_bytes)} free on {self.device}"

    @property
    def fits(self) -> bool:
        """Whether that is enough, or not known."""
        return self.need is None or self.free_bytes is None or self.need.total <= self.free_bytes

    @property
    def faults(self) -> list[str]:
        """Problems, and a shortage of memory."""
        remedy = "choose a lower --precision or fewer --sizes, or free memory"
        return self.problems if self.fits else [*self.problems, f"{self.memory}: {remedy}."]

    def facts(self) -> dict[str, object]:
        """What `--json` prints."""
        return asdict(self) | {"problems": self.faults}


def inspect(settings: Settings) -> Inspection:
    """Look at the checkpoint that the settings name.

    Raises CheckpointError if there is none, and SettingsError if the device cannot do what is asked for.
    """
    config = engine_config(settings)
    placement = config.placement()
    checkpoint = find_checkpoint(config.checkpoint, config.base)
    parts = [_look(checkpoint, name) for name in _part_names(checkpoint)]
    adapters = [_look_at_adapter(checkpoint, text) for text in config.adapters]
    faults = [*(part.problem for part in parts), *(adapter.problem for adapter in adapters)]
    problems = [fault for fault in faults if fault]
    needs, planned = _plan_all(checkpoint, config, placement, problems)
    return Inspection(
        checkpoint.reference,
        str(checkpoint.folder),
        checkpoint.revision,
        _family(checkpoint, problems),
        config.steps,
        device_name(placement.device),
        free_bytes(placement.device),
        parts,
        needs,
        planned.size_rule if planned else "",
        planned.max_prompt_tokens if planned else 0,
        planned.few_steps if planned else False,
        adapters,
        list(dict.fromkeys(problems)),
    )


def _family(checkpoint: Checkpoint, problems: list[str]) -> str:
    try:
        return checkpoint.family
    except CheckpointError as error:
        problems.append(str(error))
        return "unknown"


def _part_names(checkpoint: Checkpoint) -> list[str]:
    """The parts that the index names, and those that every family here has."""
    try:
        index = checkpoint.read_json("model_index.json")
    except CheckpointError:
        index = {}
    names = dict.fromkeys((*_USUAL_PARTS, *part_names(index)))
    return [name for name in names if name not in _UNUSED_PARTS]


def _look(checkpoint: Checkpoint, name: str) -> Part:
    try:
        if name.startswith("tokenizer"):
            # Whether it needs a chat template, its family says.
            tokens = len(checkpoint.tokenizer(name, chat=False))
            part, place = Part(name, files=1, formats=(f"{tokens} tokens",)), checkpoint.home(name) / name
        else:
            stored = checkpoint.part(name)
            part, place = _measure(name, stored), stored.folder
    except CheckpointError as error:
        return Part(name, problem=str(error))
    own = checkpoint.folder, checkpoint.folder / name
    return replace(part, from_base=checkpoint.base is not None and place not in own)


def _look_at_adapter(checkpoint: Checkpoint, text: str) -> Adapter:
    source = AdapterSource.parse(text)
    try:
        repack = find_family(checkpoint).repack
        stored = checkpoint.part(TRANSFORMER).headers
        lora = find_lora(source, stored, repack.translate if repack else dict)
    except CheckpointError as error:
        return Adapter(source.name, source.place, problem=str(error))
    return Adapter(source.name, str(lora.path), lora.rank, len(lora.updates))


def _measure(name: str, stored: StoredPart) -> Part:
    headers = stored.headers.values()
    return Part(
        name,
        sum(math.prod(header.shape) for header in headers),
        sum(header.bytes for header in headers),
        len({header.path for header in headers}),
        tuple(sorted({header.kind for header in headers})),
    )


def _plan_all(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, problems: list[str]
) -> tuple[list[Need], Plan | None]:
    """What each precision takes, and the plan of the chosen one. Adds to `problems`."""
    needs, chosen = [], None
    for precision in PRECISIONS:
        is_chosen = precision == placement.precision
        try:
            planned = plan(checkpoint, config, replace(placement, precision=precision))
        except ValueError as error:
            needs.append(Need(precision, is_chosen, problem=str(error)))
            if is_chosen:
                problems.append(f"{error}.")
        except CheckpointError as error:
            problems.extend(map(str, error.args))
            return [], None
        else:
            weights = sum(planned.weight_bytes.values())
            refusal = _refusal(config, precision)
            needs.append(Need(precision, is_chosen, weights, planned.workspace_bytes, refusal))
            chosen = planned if is_chosen else chosen
    return needs, chosen


def _refusal(config: EngineConfig, precision: str) -> str | None:
    """Why this machine cannot compute in a precision, if so."""
    try:
        replace(config, precision=precision).placement()
    except ValueError as error:
        return str(error)
    return None
