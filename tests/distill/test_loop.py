"""The loop on a small network: resumed to the bit, guarded against what is not finite, never losing work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_loop import SETTINGS, Regression, loop_of, weights
from torch import Tensor, nn

from twinshot_distill import checkpointing
from twinshot_distill.averages import RunningAverage, frozen_copy
from twinshot_distill.checkpointing import Keeper, State
from twinshot_distill.errors import TrainingError
from twinshot_distill.loop import Length, LoopSettings
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.processes import Processes


@pytest.mark.parametrize("name", ["adamw", "radam", "muon"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_agrees_to_the_bit(tmp_path: Path, name: Any, accumulate: int) -> None:
    optimizer = OptimizerSettings(name, learning_rate=0.05, warm_up=2)
    whole, straight = loop_of(tmp_path / "a", 8, optimizer=optimizer, accumulate=accumulate)
    assert whole.run() == 8
    first, _ = loop_of(tmp_path / "b", 5, optimizer=optimizer, accumulate=accumulate)
    first.run()
    torch.manual_seed(99)  # whatever else happened in between
    second, resumed = loop_of(tmp_path / "b", 8, optimizer=optimizer, accumulate=accumulate)
    assert second.run() == 8
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    assert straight.average.decay == resumed.average.decay


def test_a_run_that_is_over_is_not_trained_on(tmp_path: Path) -> None:
    loop_of(tmp_path, 4)[0].run()
    again, trainee = loop_of(tmp_path, 4)
    assert again.run() == 4
    assert again.seconds > 0
    assert again.seconds_a_step == again.seconds / 4
    saved = load_file(tmp_path / "state" / "step-00000004" / "rank-0.safetensors")
    assert torch.equal(saved["model/layer.weight"], trainee.layer.weight)


def test_muon_takes_matrices_of_blocks_and_adamw_the_rest() -> None:
    named = {
        "layers.0.attention.to_q.weight": nn.Parameter(torch.randn(4, 4)),
        "t_embedder.mlp.0.weight": nn.Parameter(torch.randn(4, 4)),
    }
    optimizer = Optimizer(named, OptimizerSettings("muon"))
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0, 0.0)
    assert set(optimizer.tensors()) == {
        "layers.0.attention.to_q.weight:momentum_buffer",
        "t_embedder.mlp.0.weight:step",
        "t_embedder.mlp.0.weight:exp_avg",
        "t_embedder.mlp.0.weight:exp_avg_sq",
    }


def test_learning_rate_warms_up_and_falls() -> None:
    optimizer = Optimizer(
        {"w": nn.Parameter(torch.zeros(1))},
        OptimizerSettings(learning_rate=1.0, warm_up=4, final_share=0.2),
    )
    assert optimizer.rate(0, 0.0) == 0.25
    assert optimizer.rate(3, 0.0) == 1.0
    assert optimizer.rate(9, 0.5) == pytest.approx(0.6)
    assert optimizer.rate(9, 1.0) == pytest.approx(0.2)


def test_accumulated_batches_are_one_step_on_their_mean(tmp_path: Path) -> None:
    plain = OptimizerSettings(learning_rate=0.05)
    loop, trainee = loop_of(tmp_path, 1, optimizer=plain, accumulate=2)
    batches: list[Tensor] = []
    trainee.loss_terms = lambda _step: (
        batches.append(torch.randn(16, 4))
        or {  # type: ignore[func-returns-value]
            "loss": (trainee.layer(batches[-1]) - batches[-1].flip(1)).square().mean()
        }
    )
    loop.run()
    other = Regression()
    together = torch.cat(batches)
    loss = (other.layer(together) - together.flip(1)).square().mean()
    torch.autograd.backward(loss)
    Optimizer(dict(other.layer.named_parameters()), plain).step(0, 0.0)
    torch.testing.assert_close(trainee.layer.weight, other.layer.weight)


def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, trainee = loop_of(tmp_path, 4, poisoned=range(2, 4), save_steps=1)
    loop.run()
    assert loop.skipped == 2
    before = load_file(tmp_path / "state" / "step-00000002" / "rank-0.safetensors")
    assert torch.equal(before["model/layer.weight"], trainee.layer.weight)
    assert all(torch.isfinite(t).all() for t in weights(trainee))
    said = capsys.readouterr().err
    assert "not finite; skipped (2 so far)" in said
    assert "step 4: not saved, as the last 2 steps were skipped; the newest state" in said
    longer, _ = loop_of(tmp_path, 6, poisoned=range(2, 4))
    longer.run()
    assert longer.skipped == 2
    assert loop_of(tmp_path, 6)[0].run() == 6


def test_states_are_saved_of_sound_steps_alone(tmp_path: Path) -> None:
    """A state that falls due while steps are skipped is saved at the next step that moves."""
    loop, _ = loop_of(tmp_path, 7, poisoned=range(3, 5), save_steps=4, save_last=False)
    loop.run()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000006"]


def test_too_many_in_a_row_end_the_run_and_the_last_state_is_sound(tmp_path: Path) -> None:
    loop, _ = loop_of(tmp_path, 50, poisoned=range(5, 50), patience=3, save_steps=2)
    with pytest.raises(
        TrainingError, match=r"4 steps in a row .* at step 8; .*newest state .* is of step 4,"
    ):
        loop.run()
    assert [path.name[-1] for path in sorted((tmp_path / "state").iterdir())] == ["2", "4"]
    healthy, trainee = loop_of(tmp_path, 9)
    assert healthy.run() == 9
    assert all(torch.isfinite(t).all() for t in weights(trainee))


def test_a_run_that_never_saved_does_not_promise_a_state(tmp_path: Path) -> None:
    loop, _ = loop_of(tmp_path, 50, poisoned=range(50), patience=2, save_steps=1)
    with pytest.raises(TrainingError, match=r"3 steps in a row .*state' holds no state\. Try"):
        loop.run()
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    told = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [entry["loss"] for entry in told] == [None, None]


@pytest.mark.parametrize("end", [b'{"step": 4, "lo', b'{"step": 4, "loss": 1.0}\n\xff\xfe', b"[]\n12\n"])
def test_a_journal_that_was_cut_off_is_gone_on_with(tmp_path: Path, end: bytes) -> None:
    loop_of(tmp_path, 3)[0].run()
    with (tmp_path / "test.jsonl").open("ab") as file:
        file.write(end)
    loop_of(tmp_path, 6)[0].run()
    told = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in told] == [1, 2, 3, 4, 5, 6]


def test_a_run_without_states_begins_its_journal_again(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "los')
    loop_of(tmp_path, 2)[0].run()
    told = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["loss"] is None) for entry in told] == [(1, False), (2, False)]


def test_single_bad_steps_far_apart_do_not_end_a_run(tmp_path: Path) -> None:
    loop, _ = loop_of(tmp_path, 30, poisoned=range(0, 30, 2), patience=1)
    assert loop.run() == 30
    assert loop.skipped == 15


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    loop_of(tmp_path, 2)[0].run()
    other = {**SETTINGS, "objective": {"order": 1}, "seed": 4}
    with pytest.raises(TrainingError, match=r"objective\.order = 2, not 1 and 1 more differ.*another folder"):
        loop_of(tmp_path, 4, settings=other)[0].run()
    longer = {**SETTINGS, "length": {"steps": 4}}
    assert loop_of(tmp_path, 4, settings=longer)[0].run() == 4


def test_a_run_from_before_a_setting_is_resumed_with_what_it_did(tmp_path: Path) -> None:
    loop_of(tmp_path, 2)[0].run()
    with pytest.raises(TrainingError, match="trained with deterministic = false, not true: resume with"):
        loop_of(tmp_path, 4, settings={**SETTINGS, "deterministic": True})[0].run()
    assert loop_of(tmp_path, 4, settings={**SETTINGS, "deterministic": False})[0].run() == 4


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    loop_of(tmp_path, 2)[0].run()
    with pytest.raises(TrainingError, match="saved by 1 processes and cannot be resumed by 2"):
        Keeper(tmp_path / "state", SETTINGS, Processes(0, 2)).latest()


@pytest.mark.parametrize("damage", ["truncated", "{}", "{", "[]", '{"settings": 3}'])
def test_a_damaged_state_is_named(tmp_path: Path, damage: str) -> None:
    loop_of(tmp_path, 2)[0].run()
    (state,) = (tmp_path / "state").iterdir()
    if damage == "truncated":
        path = state / "rank-0.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    else:
        (state / "state.json").write_text(damage)
    with pytest.raises(TrainingError, match="step-00000002' is damaged"):
        loop_of(tmp_path, 4)[0].run()


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saving fails for a while: training goes on, the older states stay, the next save works."""
    write, full = checkpointing.save_tensors, [4, 6]

    def fill(state: Mapping[str, Tensor], path: Path) -> None:
        if int(path.parent.stem[5:]) in full:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(dict(state), path)

    monkeypatch.setattr(checkpointing, "save_tensors", fill)
    loop, _ = loop_of(tmp_path, 6, save_steps=2)
    with pytest.raises(TrainingError, match=r"step-00000006' cannot be saved: .*No space.*is of step 2\."):
        loop.run()
    assert "step 4: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
    full.clear()
    assert loop_of(tmp_path, 6)[0].run() == 6


def test_only_the_newest_states_are_kept_and_half_written_ones_never_read(tmp_path: Path) -> None:
    loop_of(tmp_path, 6, save_steps=1)[0].run()
    kept = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert kept == ["step-00000005", "step-00000006"]
    (tmp_path / "state" / "step-00000009.partial").mkdir()
    state = Keeper(tmp_path / "state", SETTINGS).latest()
    assert isinstance(state, State)
    assert state.step == 6


def test_a_length_in_seconds_ends_and_resumes(tmp_path: Path) -> None:
    loop, _ = loop_of(tmp_path, 1)
    loop.settings = LoopSettings(Length(seconds=0.05))
    assert loop.run() > 3
    assert loop.progress == 1
    assert loop.seconds_a_step == loop.seconds / (loop.step - 3)
    with pytest.raises(ValueError, match="needs a length"):
        Length()


def test_the_journal_tells_live_and_forgets_what_is_trained_again(tmp_path: Path) -> None:
    loop_of(tmp_path, 3)[0].run()
    loop_of(tmp_path, 6)[0].run()
    told = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in told] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "gradient", "learning rate", "rows/s"} <= told[0].keys()
    page = (tmp_path / "progress.html").read_text()
    assert "step 6, 100.0 % done" in page
    assert "refresh" in page
    assert page.count("<svg") == 4
    (tmp_path / "state" / "step-00000006").rename(tmp_path / "gone")
    (tmp_path / "state" / "step-00000003").exists()
    loop_of(tmp_path, 6)[0].run()
    told = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in told] == [1, 2, 3, 4, 5, 6]


def test_samples_are_drawn_into_the_page(tmp_path: Path) -> None:
    loop, _ = loop_of(tmp_path, 2)
    loop.journal.sampler = lambda path: path.write_bytes(b"picture")  # type: ignore[assignment, return-value]
    loop.journal.sample_every = 1e-9
    loop.journal.prompts = ("a <cat>", "a dog")
    loop.run()
    page = (tmp_path / "progress.html").read_text()
    assert 'src="samples/test-00000002.webp"' in page
    assert "row by row: a &lt;cat&gt;; a dog<" in page


@pytest.mark.parametrize(
    ("patience", "end"), [(9, "100.0 % done, finished, 2 skipped"), (1, "66.7 % done, stopped, 1 skipped")]
)
def test_a_page_of_a_run_that_ended_says_how_and_rests(tmp_path: Path, patience: int, end: str) -> None:
    loop, _ = loop_of(tmp_path, 6, poisoned=range(3, 5), patience=patience)
    with suppress(TrainingError), closing(loop.journal):
        loop.run()
    page = (tmp_path / "progress.html").read_text()
    assert end in page
    assert "refresh" not in page


def test_running_decay_is_the_released_trainers() -> None:
    layer = nn.Linear(1, 1)
    average = RunningAverage.of(frozen_copy(layer), layer, 0.99)
    seen = []
    for _ in range(6):
        seen.append(average.decay)
        average.update()
    assert seen == pytest.approx([0, 0.495, 0.62, 0.69, 0.737, 0.77], abs=0.005)


def test_the_first_update_copies_and_later_ones_average() -> None:
    source, copy = torch.tensor([2.0]), torch.tensor([0.0])
    average = RunningAverage([(copy, source)], 0.5)
    average.update()
    assert copy.item() == 2
    source.fill_(6.0)
    average.update()  # decay .25 now
    assert copy.item() == pytest.approx(0.25 * 2 + 0.75 * 6)
