"""The one training loop: steps until a length is reached, saved and told about on the way.

Every step is seeded by the run's seed: a resumed run agrees to the bit. A step whose gradient is not finite
moves nothing, and no state is saved until one is again: weights that a last move has blown up would else take
the place of sound ones. Too many in a row end the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinshot_distill.averages import local
from twinshot_distill.checkpointing import Keeper, State
from twinshot_distill.errors import TrainingError
from twinshot_distill.interruption import Interruption, noticed
from twinshot_distill.journal import Journal
from twinshot_distill.optimizer import Optimizer
from twinshot_distill.report import say
from twinshot_distill.stepping import EagerSteps, Steps, Trainee
from twinshot_distill.strictness import STRICT, check

_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is: `steps`, or `seconds`, or whichever ends first; one of them is needed."""

    __pydantic_config__ = STRICT

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("a run needs a length: steps, seconds, or both")
        check(
            self,
            ("steps", "1 or more", self.steps is None or self.steps >= 1),
            ("seconds", "above 0", self.seconds is None or 0 < self.seconds < math.inf),
        )

    def progress(self, step: int, seconds: float) -> float:
        """The share that is done, 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_seconds = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_seconds))


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How a run is run.

    Attributes:
        length: when it ends.
        accumulate: batches a step.
        save_steps: steps between states; 0 saves none but the last.
        save_seconds: seconds between states, where 0 saves by steps alone.
        save_last: whether the end is saved as a state too.
        patience: steps in a row that may have a gradient that is not finite.
        seed: of everything random.
    """

    length: Length
    accumulate: int = 1
    save_steps: int = 0
    save_seconds: float = 0.0
    save_last: bool = True
    patience: int = 10
    seed: int = 0


@dataclass
class Loop:
    """A trainee, its optimiser, and where both are kept and told about; `steps` may be other than eager."""

    trainee: Trainee
    optimizer: Optimizer
    settings: LoopSettings
    keeper: Keeper
    journal: Journal
    steps: Steps | None = None
    step: int = 0
    seconds: float = 0.0
    timed: int = 0
    skipped: int = 0
    _in_a_row: int = 0
    _due: bool = False
    _last_save: float = field(default_factory=time.monotonic)
    _steps: Steps = field(init=False)

    def __post_init__(self) -> None:
        self._steps = self.steps or EagerSteps(self.trainee, self.optimizer, self.settings.accumulate)

    def run(self) -> int:
        """Train to the end, from the newest state if there is one; returns the number of steps.

        Raises:
            TrainingError: the newest state cannot be resumed, the training diverged, or the last state cannot
                be saved.
            KeyboardInterrupt: Ctrl-C, after the step it came in was saved.
            SystemExit: the same after SIGTERM.
        """
        self._resume()
        with noticed(speaks=self.keeper.processes.first) as interruption:
            saved = self._train(interruption)
        if self.settings.save_last and saved != self.step:
            self._save_if_sound()
        self.journal.finish(self.step, self.skipped)
        return self.step

    def _train(self, interruption: Interruption) -> int:
        """Take steps to the end; returns which one was saved last."""
        saved, agree = self.step, self.keeper.processes.agree
        every, longest = self.settings.save_steps, self.settings.save_seconds
        while self.progress < 1:
            started = time.monotonic()
            self._step()
            self._count(started)
            self.journal.report(self.step, self.progress, self._remaining, self.skipped)
            # All save and end after the same step: the first one's clock and signal count.
            waited = time.monotonic() - self._last_save
            self.seconds, waited, asked = agree(self.seconds, waited, interruption.asked)
            if (every and self.step % every == 0) or (longest and waited >= longest):
                self._due = True
            if self._due and not self._in_a_row:
                saved = self._try_to_save(saved)
                (asked,) = agree(interruption.asked)  # saving may take long
            if asked:
                self._stop(saved)
                Interruption(int(asked)).obey()
        return saved

    def _stop(self, saved: int) -> None:
        """Save the interrupted run's step, and say what the same command goes on from."""
        if saved != self.step:
            self._save_if_sound()
        if self.keeper.processes.first:
            kept = self.keeper.newest()
            there = "the beginning" if kept is None else f"step {kept}"
            say(f"interrupted after step {self.step}; the same command goes on from {there}")

    @property
    def progress(self) -> float:
        """The share of the length that is done, 0 to 1."""
        return self.settings.length.progress(self.step, self.seconds)

    @property
    def seconds_a_step(self) -> float:
        """Mean over the steps that count against a length; not a number where none does yet."""
        return self.seconds / self.timed if self.timed else float("nan")

    def _step(self) -> None:
        seed_step(self.settings.seed, self.step, self.keeper.processes.rank)
        rate = self.optimizer.rate(self.step, self.progress)
        terms, norm = self._steps.gradients(self.step)
        if self._is_finite(norm):
            self._steps.move(rate)
        else:
            self._steps.skip()
        self.journal.note(terms, norm, rate)

    def _is_finite(self, norm: Tensor) -> bool:
        if bool(torch.isfinite(norm)):
            self._in_a_row = 0
            return True
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        say(f"step {self.step}: the gradient is not finite; skipped ({self.skipped} so far)")
        if self._in_a_row > self.settings.patience:
            raise TrainingError(
                f"{self._in_a_row} steps in a row had a gradient that is not finite, the last at step "
                f"{self.step}; {self._newest}. Try a lower learning rate in another folder, or other data."
            )
        return False

    @property
    def _newest(self) -> str:
        """What there is to resume from, in words."""
        before = "" if self.keeper.newest() is None else ", before the first of them"
        return self.keeper.told + before

    def _count(self, started: float) -> None:
        self.step += 1
        if self._steps.settled or self.settings.length.seconds is None:
            self.seconds += time.monotonic() - started
            self.timed += 1

    @property
    def _remaining(self) -> float:
        """Seconds to go, by the average step so far."""
        done = self.progress
        return self.seconds * (1 - done) / done if done else float("nan")

    def _try_to_save(self, saved: int) -> int:
        """Save, or say why not and go on: a full disk can be mended meanwhile."""
        try:
            self._save()
        except TrainingError as error:
            say(f"step {self.step}: {error}")
            return saved
        finally:
            self._last_save, self._due = time.monotonic(), False
        return self.step

    def _save_if_sound(self) -> None:
        """Save the end, or say what stays where the last steps were skipped."""
        skips = self._in_a_row
        if not skips:
            self._save()
        elif self.keeper.processes.first:
            say(f"step {self.step}: not saved, as the last {skips} steps were skipped; {self._newest}")

    def _save(self) -> None:
        tensors = {f"model/{name}": local(t) for name, t in self.trainee.tensors().items()}
        tensors |= {f"optimizer/{name}": t for name, t in self.optimizer.tensors().items()}
        numbers = {**self.trainee.numbers(), "skipped": self.skipped, "timed": self.timed}
        self.keeper.save(State(self.step, self.seconds, tensors, numbers))

    def _resume(self) -> None:
        state = self.keeper.latest()
        if state is None:
            self.journal.rewind(self.step)
            return
        for name, tensor in self.trainee.tensors().items():
            local(tensor).detach().copy_(state.tensors[f"model/{name}"])
        memory = {
            name.removeprefix("optimizer/"): tensor
            for name, tensor in state.tensors.items()
            if name.startswith("optimizer/")
        }
        self.optimizer.restore(memory)
        self.trainee.restore(state.numbers)
        self.journal.rewind(state.step)
        self.step, self.seconds, self.skipped = state.step, state.seconds, int(state.numbers["skipped"])
        self.timed = int(state.numbers.get("timed", state.step))
        say(f"resumed at step {self.step}")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch on all devices for one step of one process."""
    torch.manual_seed((seed * _SEED_STRIDE + step) * 65_537 + rank)
