"""How the loop takes a step: launch by launch, or as two CUDA graphs.

A small model's step is thousands of launches of a few microseconds each, and a host that hands them over one
by one takes longer than the GPU needs for them. :class:`CapturedSteps` records a step once and repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from twinshot_distill.optimizer import Optimizer

_EAGER_STEPS = 3
"""Steps of a kind that run as they are: they compile, and create the optimiser's memory."""


class Trainee(Protocol):
    """What the loop trains."""

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """Terms whose sum is the loss of one batch; it may depend on the step and on torch's chance alone."""

    def after_step(self) -> None:
        """The weights have moved."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All that a state must hold beside the optimiser's memory: the live tensors, by name."""

    def numbers(self) -> Mapping[str, float]:
        """Numbers that a state must hold."""

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take up numbers; the tensors have been restored."""


class CapturableTrainee(Trainee, Protocol):
    """A trainee whose batches of a kind are all the same work on the same tensors."""

    def prepare(self, step: int) -> int:
        """Do the host's part of a step, such as fresh data, and say of which kind the step is."""

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The loss terms of a batch, computed on the device alone; what they read stays where it is."""


class Steps(Protocol):
    """Takes steps."""

    @property
    def settled(self) -> bool:
        """Whether the last step took as long as most will: nothing was compiled or recorded."""

    def gradients(self, step: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """Compute a step's clipped gradients; returns its loss terms and the norm before clipping."""

    def move(self, rate: float) -> None:
        """Move weights and averages along them at a learning rate."""

    def skip(self) -> None:
        """Leave everything where it is."""


class EagerSteps:
    """Steps as torch runs them.

    Args:
        trainee: what learns.
        optimizer: of its parameters.
        parts: batches a step.
    """

    def __init__(self, trainee: Trainee, optimizer: Optimizer, parts: int = 1) -> None:
        self._trainee, self._optimizer, self._parts = trainee, optimizer, parts
        self._taken = 0

    @property
    def settled(self) -> bool:
        """Whether the last step took as long as most will."""
        return self._taken > _EAGER_STEPS

    def gradients(self, step: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """Compute a step's clipped gradients; see :class:`Steps`."""
        self._taken += 1
        told: dict[str, Tensor] = {}
        for part in range(self._parts):
            terms = self._trainee.loss_terms(step * self._parts + part)
            torch.autograd.backward(sum(terms.values(), torch.zeros(())) / self._parts)
            for name, term in terms.items():
                told[name] = told.get(name, torch.zeros(())) + term.detach() / self._parts
        return told, self._optimizer.clip()

    def move(self, rate: float) -> None:
        """Move weights and averages along the gradients."""
        self._optimizer.set_rate(rate)
        self._optimizer.move()
        self._optimizer.forget()
        self._trainee.after_step()

    def skip(self) -> None:
        """Leave everything where it is."""
        self._optimizer.forget()


@dataclass
class _Recorded:
    """A kind of step: how often it ran, and its graphs once there are any."""

    taken: int = 0
    gradients: Any = None
    move: Any = None
    terms: Mapping[str, Tensor] | None = None
    norm: Tensor | None = None


class CapturedSteps:
    """Steps as CUDA graphs: one for the gradients, one for the move, for each kind of step.

    Between the two the host reads the gradient's norm, so that a step that is not finite moves nothing.
    Chance goes on as in eager steps: graphs take the generator's seed when they are replayed.

    Args:
        trainee: what learns, on a CUDA device.
        optimizer: of its parameters, capturable.
    """

    def __init__(self, trainee: CapturableTrainee, optimizer: Optimizer) -> None:
        self._trainee, self._optimizer = trainee, optimizer
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._kinds: dict[int, _Recorded] = {}
        self._now = _Recorded()

    @property
    def settled(self) -> bool:
        """Whether the last step took as long as most will."""
        return self._now.taken > _EAGER_STEPS + 1

    def gradients(self, step: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """Compute a step's clipped gradients; see :class:`Steps`."""
        with self._own_stream():
            kind = self._trainee.prepare(step)
            self._now = now = self._kinds.setdefault(kind, _Recorded())
            now.taken += 1
            if now.gradients is None:
                # Gradients of another kind's graph may still be there: these must be this kind's own.
                self._optimizer.forget()
            if now.taken <= _EAGER_STEPS:
                return self._compute(kind)
            if now.gradients is None:
                now.gradients = self._record(lambda: self._keep(*self._compute(kind)))
            now.gradients.replay()
        if now.terms is None or now.norm is None:
            raise RuntimeError(f"no results were recorded for steps of kind {kind!r}")
        return now.terms, now.norm

    def move(self, rate: float) -> None:
        """Move weights and averages along the gradients."""
        with self._own_stream():
            self._optimizer.set_rate(rate)
            if self._now.gradients is None:
                self._move()
                return
            if self._now.move is None:
                self._now.move = self._record(self._move)
            self._now.move.replay()

    def skip(self) -> None:
        """Leave everything where it is: the next gradients replace these."""

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Run on one stream throughout, since nothing can be recorded on the default stream."""
        default = torch.cuda.current_stream()
        self._stream.wait_stream(default)
        with torch.cuda.stream(self._stream):
            yield
        default.wait_stream(self._stream)

    def _compute(self, kind: int) -> tuple[Mapping[str, Tensor], Tensor]:
        terms = self._trainee.terms(kind)
        torch.autograd.backward(sum(terms.values(), torch.zeros(())))
        return {name: term.detach() for name, term in terms.items()}, self._optimizer.clip()

    def _keep(self, terms: Mapping[str, Tensor], norm: Tensor) -> None:
        self._now.terms, self._now.norm = terms, norm

    def _move(self) -> None:
        self._optimizer.move()
        self._trainee.after_step()

    def _record(self, work: Callable[[], None]) -> Any:
        """Record work without doing it."""
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph
