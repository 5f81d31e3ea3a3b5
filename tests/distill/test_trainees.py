"""Who is student, teacher and guide for each `teacher_decay`, and how a model comes to several devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, distributed, nn

from twinshot_distill.families.base import Caption, OpenModel
from twinshot_distill.lora import LoraSettings, add_adapters
from twinshot_distill.objective import Objective
from twinshot_distill.processes import Processes
from twinshot_distill.sharding import gathered, place
from twinshot_distill.trainees import Batches, Distillation, FullDistillation, LoraDistillation

WIDTH = 256
NOTHING = Caption(torch.zeros(2, 1, 1), torch.ones(2, dtype=torch.long))


class Stack(OpenModel):
    """Linear layers that read latents alone, and a buffer."""

    def __init__(self, depth: int = 1) -> None:
        layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(depth)))
        super().__init__(layers, single_time=True)
        self.register_buffer("one", torch.ones(1))

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
        del t, r, caption
        out: Tensor = self.transformer(x_t) * self.one
        return out

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.transformer.children())


def stays(model: OpenModel) -> None:
    del model


def trainee(objective: Objective, *, lora: bool) -> Distillation:
    torch.manual_seed(0)
    model, batches = Stack(), cast(Batches, SimpleNamespace())
    if not lora:
        return FullDistillation(model, batches, objective, bf16=False, average=0.0, place=stays)
    add_adapters(model.transformer, LoraSettings(2, 2.0), ["0"])
    return LoraDistillation(model, batches, objective, bf16=False, place=stays)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("decay", "teacher", "guide"), [(0.0, "now", "now"), (0.5, "start", "start"), (1.0, "now", "start")]
)
def test_who_teaches_and_who_guides(decay: float, teacher: str, guide: str, *, lora: bool) -> None:
    """A frozen start gives guidance alone; before it first follows, an average is the start too."""
    trained = trainee(replace(Objective(), teacher_decay=decay), lora=lora)
    x, t = torch.randn(2, WIDTH), torch.ones(2)
    nets = trained.networks
    with torch.no_grad():
        answers = {"start": nets.student(x, t, t, NOTHING)}
        for parameter in trained.parameters().values():
            parameter.add_(0.1)
        answers["now"] = nets.student(x, t, t, NOTHING)
        assert not torch.allclose(answers["now"], answers["start"])
        torch.testing.assert_close(nets.teacher(x, t, t, NOTHING), answers[teacher])
        torch.testing.assert_close(nets.guide(x, t, t, NOTHING), answers[guide])


@pytest.mark.parametrize("lora", [False, True])
def test_a_teacher_follows_once_a_step_however_many_batches_that_adds_up(*, lora: bool) -> None:
    trained = trainee(replace(Objective(), teacher_decay=0.99), lora=lora)
    for decay in (0.495, 0.620):
        for _ in range(3):
            trained.networks.follow()
        trained.after_step()
        assert trained.numbers()["teacher"] == pytest.approx(decay, abs=1e-3)


def test_a_copy_is_placed_before_the_next_is_made() -> None:
    """A large model's host has room for one copy beside it."""
    seen: list[str] = []

    class Copied(Stack):
        def __deepcopy__(self, memo: dict[int, Any]) -> Stack:
            seen.append("copied")
            return Stack()

    objective = replace(Objective(), teacher_decay=0.5, guide="start")
    batches = cast(Batches, SimpleNamespace())

    def put(_: OpenModel) -> None:
        seen.append("placed")

    FullDistillation(Copied(), batches, objective, bf16=False, average=0.5, place=put)
    assert seen == ["copied", "placed"] * 3 + ["placed"]


@pytest.fixture
def eight() -> Iterator[Processes]:
    """This process as one of eight, whose seven others are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield Processes(0, 8)
    distributed.destroy_process_group()


def test_a_model_for_several_devices_is_never_moved_as_a_whole(
    eight: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the whole model was moved")

    model = Stack(8)
    monkeypatch.setattr(nn.Module, "to", refuse)
    place(model, eight, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        assert cast(Any, parameter).to_local().numel() == parameter.numel() / 8, name


@pytest.mark.gpu
def test_a_gpu_never_holds_more_than_its_parts_and_one_block(eight: Processes) -> None:
    model, device = Stack(32), torch.device("cuda", torch.cuda.current_device())
    block = 4 * WIDTH * (WIDTH + 1)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    place(model, eight, device)
    assert torch.cuda.max_memory_allocated() - before < 32 * block / 8 + 4 * block
    assert model.get_buffer("one").device == device


def test_what_is_gathered_is_a_tensor_of_its_own() -> None:
    """Safetensors refuses to save a view of something larger."""
    padded = torch.zeros(4, 3, dtype=torch.bfloat16)
    whole = gathered(padded[:1])
    assert whole.untyped_storage().nbytes() == whole.numel() * whole.element_size()
    padded.fill_(1)
    assert not whole.any()
