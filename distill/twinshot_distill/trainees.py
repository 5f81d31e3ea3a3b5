"""A checkpoint's transformer as the loop trains it: all of its weights, or adapters on some of its layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twinshot_distill.averages import RunningAverage, frozen_copy, parameters_of
from twinshot_distill.data.cache import CachedData
from twinshot_distill.families.base import Caption, Embedding, OpenModel, batch_captions
from twinshot_distill.lora import Adapter, LoraLinear, adapter_pairs, lora_layers, using
from twinshot_distill.objective import Network, Networks, Objective
from twinshot_distill.step import loss_terms


@dataclass(frozen=True, slots=True)
class Batches:
    """Draws batches of cached samples onto a device."""

    data: CachedData
    rows: int
    token_multiple: int
    device: torch.device

    def draw(self) -> tuple[Tensor, Caption, Caption]:
        """Latents, captions, and as many empty captions, by torch's chance."""
        latents, embeddings = self.data.draw(self.rows, torch.default_generator)
        given = self.captions(embeddings)
        return latents.to(self.device), given, self.captions([self.data.empty]).repeated(self.rows)

    def captions(self, embeddings: Sequence[Embedding]) -> Caption:
        """Embeddings as one caption on the device."""
        return batch_captions(embeddings, self.token_multiple, self.device)


class Distillation(ABC):
    """TwinFlow on an open model; see :class:`~twinshot_distill.loop.Trainee`.

    Attributes:
        model: the student; its trainable parameters are those that need gradients.
    """

    def __init__(self, model: OpenModel, batches: Batches, objective: Objective, *, bf16: bool) -> None:
        self.model, self.batches, self.objective = model, batches, objective
        self._bf16, self._followed = bf16, False

    @property
    @abstractmethod
    def networks(self) -> Networks[Caption]:
        """Student, teacher and guide."""

    @abstractmethod
    def averages(self) -> Mapping[str, RunningAverage]:
        """The running averages by name."""

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """What a state must hold."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """TwinFlow on the next batch."""
        del step
        return loss_terms(self.networks, self.objective, *self.batches.draw())

    def numbers(self) -> Mapping[str, float]:
        """How far the averages are."""
        return {name: average.decay for name, average in self.averages().items()}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take up numbers of an earlier state."""
        for name, average in self.averages().items():
            average.decay = numbers[name]

    def after_step(self) -> None:
        """Average the weights that are exported."""
        self._followed = False
        if exported := self.averages().get("exported"):
            exported.update()

    def _follow(self) -> None:
        """Let the teacher take in the student: once a step, however many batches that adds up."""
        teacher = self.averages().get("teacher")
        if teacher and 0 < self.objective.teacher_decay < 1 and not self._followed:
            teacher.update()
            self._followed = True

    def running(self, model: nn.Module) -> Network[Caption]:
        """A model as a network that computes in bf16 where that was asked for."""

        def velocity(x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self._bf16):
                out: Tensor = model(x_t, t, r, caption)
            return out

        return velocity


class FullDistillation(Distillation):
    """All weights are trained; the teacher is the student, or its average; a frozen start only guides."""

    def __init__(
        self,
        model: OpenModel,
        batches: Batches,
        objective: Objective,
        *,
        bf16: bool,
        average: float,
        place: Callable[[OpenModel], None],
    ) -> None:
        """Copy what the objective needs copies of, and put all of it where it belongs.

        Args:
            model: the student, on the CPU.
            batches: of data.
            objective: TwinFlow's settings.
            bf16: whether to compute in bf16.
            average: decay of the exported average, 0 for none.
            place: moves or shards a model.
        """
        super().__init__(model, batches, objective, bf16=bf16)
        decay = objective.teacher_decay

        def copied() -> OpenModel:
            # Placed before the next is made: the host never holds more than one beside the model.
            copy = frozen_copy(model)
            place(copy)
            return copy

        self.teacher = copied() if decay > 0 else model
        self.start = copied() if objective.guide == "start" and decay < 1 else self.teacher
        self.exported = copied() if average else model
        place(model)
        self._averages = {}
        if 0 < decay < 1:
            self._averages["teacher"] = RunningAverage.of(self.teacher, model, decay)
        if average:
            self._averages["exported"] = RunningAverage.of(self.exported, model, average)

    @property
    def networks(self) -> Networks[Caption]:
        """Student, teacher and guide."""
        guide = self.start if self.objective.guide == "start" else self.teacher
        student = self.running(self.model)
        teacher = student if self.objective.teacher_decay == 1 else self.running(self.teacher)
        return Networks(student, teacher, self.running(guide), self._follow)

    def averages(self) -> Mapping[str, RunningAverage]:
        """Of the teacher and of what is exported, where there are any."""
        return self._averages

    def tensors(self) -> Mapping[str, Tensor]:
        """The student and its averages."""
        parts = {"student": self.model, "teacher": self.teacher, "exported": self.exported}
        kept = {"student": self.model} | {name: parts[name] for name in self._averages}
        return parameters_of(**kept)


class LoraDistillation(Distillation):
    """Adapters are trained: `default` is the student, `old` its average, none of them the frozen start."""

    def __init__(
        self,
        model: OpenModel,
        batches: Batches,
        objective: Objective,
        *,
        bf16: bool,
        place: Callable[[OpenModel], None],
    ) -> None:
        super().__init__(model, batches, objective, bf16=bf16)
        place(model)
        self.layers = lora_layers(model.transformer)
        self._old = RunningAverage(adapter_pairs(self.layers), objective.teacher_decay)

    @property
    def networks(self) -> Networks[Caption]:
        """The one model with one adapter or another; a frozen start only guides."""
        student = self.running(self.model)
        decay = self.objective.teacher_decay
        adapter: Adapter = "default" if decay == 0 else "disabled" if decay == 1 else "old"
        guide = self._using(adapter, student)
        return Networks(student, student if decay == 1 else guide, guide, self._follow)

    def averages(self) -> Mapping[str, RunningAverage]:
        """Of the adapter."""
        return {"teacher": self._old}

    def tensors(self) -> Mapping[str, Tensor]:
        """Both adapters: the rest never changes."""
        return {
            f"{name}.{part}": layer.weight_of(part)
            for name, layer in self.layers.items()
            for part in ("default_down", "default_up", "old_down", "old_up")
        }

    def _using(self, adapter: Adapter, student: Network[Caption]) -> Network[Caption]:
        layers: list[LoraLinear] = list(self.layers.values())

        def velocity(x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
            with using(layers, adapter):
                return student(x_t, t, r, caption)

        return velocity
