"""Ctrl-C and SIGTERM lose nothing: the step is finished and saved, and a resumed run agrees to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_loop import loop_of, weights
from torch import Tensor


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Ctrl-C as in a terminal, also where the tests were started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupted_run_finishes_its_step_and_saves_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    raised: type[BaseException],
) -> None:
    before = signal.getsignal(number)
    whole, straight = loop_of(tmp_path / "a", 8)
    whole.run()
    cut, trainee = loop_of(tmp_path / "b", 8)
    learn = trainee.loss_terms

    def interrupted(step: int) -> Mapping[str, Tensor]:
        if step == 4:
            os.kill(os.getpid(), number)
        return learn(step)

    monkeypatch.setattr(trainee, "loss_terms", interrupted)
    with pytest.raises(raised) as caught:
        cut.run()
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 143
    assert "interrupted after step 5; the same command goes on from step 5" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    again, resumed = loop_of(tmp_path / "b", 8)
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, trainee = loop_of(tmp_path, 8)

    def twice(_step: int) -> Mapping[str, Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was swallowed")

    monkeypatch.setattr(trainee, "loss_terms", twice)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert not (tmp_path / "state").exists()


def test_an_interrupt_while_steps_are_skipped_keeps_the_states_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, trainee = loop_of(tmp_path, 8, poisoned=range(3, 8), save_steps=2)
    learn = trainee.loss_terms

    def interrupted(step: int) -> Mapping[str, Tensor]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(step)

    monkeypatch.setattr(trainee, "loss_terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
    assert "interrupted after step 6; the same command goes on from step 2" in capsys.readouterr().err


def test_an_ignored_signal_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, trainee = loop_of(tmp_path, 3)
    learn = trainee.loss_terms

    def interrupted(step: int) -> Mapping[str, Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return learn(step)

    monkeypatch.setattr(trainee, "loss_terms", interrupted)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert loop.run() == 3


def test_a_run_on_another_thread_takes_no_signals(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(loop_of(tmp_path, 3)[0].run).result() == 3
