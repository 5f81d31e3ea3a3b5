"""The compared training methods: their settings, and each made ready to go on from one flow model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from torch import nn
from transformers import PreTrainedTokenizerFast

from twinshot_distill.miniature.configuration import FlowSettings, Run, TwinFlowSettings, World
from twinshot_distill.miniature.dataset import LatentSource
from twinshot_distill.miniature.denoiser import Denoiser, compile_blocks
from twinshot_distill.miniature.dmd import DmdSettings, DmdTrainee
from twinshot_distill.miniature.flow_matching import FlowTrainee
from twinshot_distill.miniature.stages import StageSettings
from twinshot_distill.miniature.twinflow import TwinFlowTrainee
from twinshot_distill.objective import GroupWeights
from twinshot_distill.stepping import CapturableTrainee

COST = "training.json"
"""The file in a trained method's folder that says what training took: one flat row."""

_FLOW_WORK = 3.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Settings of all methods, which train for as many seconds, on as many rows a step, from one pool.

    Captions are short in all of them, as those that are scored are, so that one shape is compiled.
    """

    world: World
    flow: FlowSettings
    rcgm: TwinFlowSettings
    dmd2: DmdSettings
    twinflow: TwinFlowSettings
    compiled: bool = True
    captured: bool = True
    seed: int = 0
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        shared = [(each.seconds, each.batch) for each in (self.flow, self.rcgm, self.dmd2, self.twinflow)]
        if len(set(shared)) > 1:
            raise ValueError(f"seconds and batch {shared} must be the same for all methods")

    @classmethod
    def of(cls, run: Run, seconds: float) -> Self:
        """The methods beside the miniature's own stages: stage 2 goes on, and stage 3 without twin terms.

        Args:
            run: gives the data, both stages, and stage 3's batch to all.
            seconds: that each method trains.
        """
        twinflow = replace(run.twinflow, seconds=seconds, long_share=0.0)
        alone = replace(twinflow.objective, groups=GroupWeights(adv=0), rectify=0.0)
        return cls(
            run.world,
            replace(run.flow, seconds=seconds, batch=twinflow.batch, long_share=0.0),
            replace(twinflow, objective=alone),
            DmdSettings(seconds, twinflow.batch, twinflow.ema, 0.0),
            twinflow,
            run.compiled,
            run.captured,
            run.seed,
            run.save_seconds,
        )

    @property
    def run(self) -> Run:
        """What the loop and the data need to know, for all methods alike."""
        return Run(
            self.world,
            compiled=self.compiled,
            captured=self.captured,
            seed=self.seed,
            save_seconds=self.save_seconds,
        )


class Method(NamedTuple):
    """A method made ready.

    Attributes:
        trainee: for the loop.
        settings: its stage's.
        trained: the parameters that move, by name.
        networks: all that are held while it trains, by what they are there for.
        result: what is exported in the end.
        work: forward passes a row and step, as `Objective.work` counts them.
        compile: compiles the networks' blocks.
    """

    trainee: CapturableTrainee
    settings: StageSettings
    trained: Mapping[str, nn.Parameter]
    networks: Mapping[str, nn.Module]
    result: Denoiser
    work: float
    compile: Callable[[], None]

    def sizes(self) -> dict[str, Any]:
        """How many parameters are trained and held, and in which networks, as parts of a flat row."""
        held = {id(p): p.numel() for network in self.networks.values() for p in network.parameters()}
        return {
            "networks": ", ".join(self.networks),
            "trained_parameters": sum(parameter.numel() for parameter in self.trained.values()),
            "held_parameters": sum(held.values()),
        }


Prepare = Callable[[Denoiser, LatentSource, PreTrainedTokenizerFast, Comparison], Method]
"""Makes a method ready, from a flow model that it leaves as it is."""


def _flow_matching(
    start: Denoiser, pool: LatentSource, tokenizer: PreTrainedTokenizerFast, settings: Comparison
) -> Method:
    model = deepcopy(start).requires_grad_(requires_grad=True)
    trainee = FlowTrainee(model, pool, tokenizer, settings.flow)
    return Method(
        trainee,
        settings.flow,
        dict(model.named_parameters()),
        {"model": model, "average": trainee.averaged},
        trainee.averaged,
        _FLOW_WORK,
        lambda: compile_blocks(model.transformer),
    )


def _consistency(
    start: Denoiser, pool: LatentSource, tokenizer: PreTrainedTokenizerFast, settings: TwinFlowSettings
) -> Method:
    trainee = TwinFlowTrainee(start, pool, tokenizer, settings)
    networks = {
        "student": trainee.student,
        "teacher (average)": trainee.teacher,
        "guide (start)": trainee.start,
        "average": trainee.averaged,
    }
    trained = dict(trainee.student.named_parameters())
    work = settings.objective.work
    return Method(trainee, settings, trained, networks, trainee.averaged, work, trainee.compile)


def _dmd2(
    start: Denoiser, pool: LatentSource, tokenizer: PreTrainedTokenizerFast, settings: Comparison
) -> Method:
    trainee = DmdTrainee(start, pool, tokenizer, settings.dmd2)
    networks = {
        "generator": trainee.generator,
        "real score (start)": trainee.real,
        "fake score": trainee.fake,
        "critic": trainee.critic,
        "average": trainee.averaged,
    }
    work = settings.dmd2.objective.work
    return Method(
        trainee, settings.dmd2, trainee.parameters(), networks, trainee.averaged, work, trainee.compile
    )


METHODS: Mapping[str, Prepare] = {
    "flow-matching": _flow_matching,
    "rcgm": lambda start, pool, tokenizer, settings: _consistency(start, pool, tokenizer, settings.rcgm),
    "dmd2": _dmd2,
    "twinflow": lambda start, pool, tokenizer, settings: _consistency(
        start, pool, tokenizer, settings.twinflow
    ),
}
"""All methods by their names in result files."""


def find_methods(text: str) -> list[str]:
    """Names of methods from "all" or a list such as "rcgm,dmd2"; ValueError names one that is unknown."""
    names = list(METHODS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}, or all")
    return names
