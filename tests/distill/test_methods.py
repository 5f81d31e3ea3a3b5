"""The compared methods on the miniature: equal terms, what they hold, and DMD2 as a trainee."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill.checkpointing import Keeper
from twinshot_distill.dmd import DmdObjective
from twinshot_distill.journal import Journal
from twinshot_distill.loop import Length, Loop, LoopSettings
from twinshot_distill.miniature.configuration import Run, changed
from twinshot_distill.miniature.dataset import SHORT, Captions
from twinshot_distill.miniature.denoiser import Condition, Denoiser
from twinshot_distill.miniature.dmd import Critic, DmdSettings, DmdTrainee
from twinshot_distill.miniature.methods import METHODS, Comparison, find_methods
from twinshot_distill.miniature.tokenizer import build_tokenizer
from twinshot_distill.optimizer import Optimizer, OptimizerSettings
from twinshot_distill.stepping import CapturedSteps, EagerSteps, Steps


class FixedPool:
    """Noise with one caption for all."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.position = device, 0

    def renew(self, step: int) -> None:
        del step
        self.position += 1

    def refill(self, position: int) -> None:
        self.position = position

    def sample(self, count: int, width: int) -> tuple[Tensor, Captions]:
        tokens = torch.full((count, width), 5, dtype=torch.int32, device=self.device)
        latents = torch.randn(count, 8, 32, 32, device=self.device)
        return latents, Captions(tokens, torch.full((count,), 20, device=self.device))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def flow() -> Denoiser:
    """A fresh model predicts zero; a little noise makes every weight matter."""
    torch.manual_seed(0)
    model = Denoiser()
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def words(rows: int) -> Condition:
    return Condition(torch.randn(rows, SHORT, 192), torch.full((rows,), 20))


def test_the_critic_reads_the_first_layers_of_the_fake_network(flow: Denoiser) -> None:
    torch.manual_seed(0)
    fake = flow.transformer
    critic = Critic(fake, 0.5)
    mine = {id(p) for p in critic.parameters()}
    assert not mine & {id(p) for p in fake.parameters()}
    x_t, t, given = torch.randn(2, 8, 32, 32), torch.tensor([0.2, 0.9]), words(2)
    with torch.no_grad():
        logits = critic(x_t, t, given)
        moved = []
        for layer in (3, 4):
            weight = fake.layers[layer].get_parameter("feed_forward.w2.weight")
            weight.mul_(1.5)
            moved.append(not torch.equal(critic(x_t, t, given), logits))
            weight.div_(1.5)
    assert logits.shape == (2,)
    assert moved == [True, False]


def dmd_loop(
    folder: Path, flow: Denoiser, tokenizer: PreTrainedTokenizerFast, steps: int
) -> tuple[Loop, DmdTrainee]:
    torch.manual_seed(0)
    objective = DmdObjective(fake_updates=1)
    trainee = DmdTrainee(flow, FixedPool(), tokenizer, DmdSettings(batch=1, objective=objective))
    folder.mkdir(exist_ok=True)
    loop = Loop(
        trainee,
        Optimizer(trainee.parameters(), OptimizerSettings(learning_rate=1e-3)),
        LoopSettings(Length(steps), seed=3),
        Keeper(folder / "state", {"length": steps}),
        Journal(folder, "dmd2", 1),
    )
    return loop, trainee


def test_dmd2_resumes_to_the_bit_and_averages_its_generator(
    tmp_path: Path, flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole, straight = dmd_loop(tmp_path / "a", flow, tokenizer, 3)
    start = {name: tensor.detach().clone() for name, tensor in straight.tensors().items()}
    whole.run()
    dmd_loop(tmp_path / "b", flow, tokenizer, 2)[0].run()
    torch.manual_seed(99)
    second, resumed = dmd_loop(tmp_path / "b", flow, tokenizer, 3)
    second.run()
    ended = straight.tensors()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in resumed.tensors().items())
    assert resumed.numbers() == straight.numbers()
    moved = {name.split(".")[0] for name, tensor in ended.items() if not torch.equal(tensor, start[name])}
    assert moved == {"generator", "fake", "critic", "average"}
    assert all(
        torch.equal(a, b)
        for a, b in zip(straight.real.parameters(), flow.transformer.parameters(), strict=True)
    )


@pytest.mark.gpu
def test_dmd2s_recorded_steps_train_as_eager_ones_do(
    flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = DmdSettings(batch=8, long_share=0.0, objective=DmdObjective(fake_updates=1))

    def told(steps_of: Callable[[DmdTrainee, Optimizer], Steps]) -> list[float]:
        torch.manual_seed(0)
        trainee = DmdTrainee(deepcopy(flow).cuda(), FixedPool("cuda"), tokenizer, settings)
        capturable = steps_of is CapturedSteps
        optimizer = Optimizer(
            trainee.parameters(), OptimizerSettings(learning_rate=1e-5), capturable=capturable
        )
        steps, values = steps_of(trainee, optimizer), []
        for step in range(14):
            torch.manual_seed(step)
            terms, norm = steps.gradients(step)
            values += [float(term) for term in terms.values()] + [float(norm)]
            steps.move(1e-5)
        return values

    assert told(CapturedSteps) == pytest.approx(told(EagerSteps), rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_counts_what_it_holds(
    name: str, flow: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = changed(Comparison.of(Run(), 1.0), [])
    method = METHODS[name](flow, FixedPool(), tokenizer, settings)
    text, transformer = (sum(p.numel() for p in part.parameters()) for part in (flow.text, flow.transformer))
    sizes = method.sizes()
    critic = sum(p.numel() for p in method.networks["critic"].parameters()) if name == "dmd2" else 0
    trained = {"flow-matching": text + transformer, "dmd2": 2 * transformer + critic}
    held = {"flow-matching": 2 * (text + transformer)}
    assert sizes["trained_parameters"] == trained.get(name, transformer)
    assert sizes["held_parameters"] == held.get(name, 4 * transformer + text + critic)
    assert sizes["networks"].count(",") == len(method.networks) - 1
    ours = {p.data_ptr() for p in method.trained.values()}
    assert not ours & {p.data_ptr() for p in flow.parameters()}


def test_methods_train_on_equal_terms() -> None:
    settings = Comparison.of(changed(Run(), ["twinflow.batch=64", "seed=7"]), 30.0)
    stages = (settings.flow, settings.rcgm, settings.dmd2, settings.twinflow)
    assert {(stage.seconds, stage.batch, stage.long_share) for stage in stages} == {(30.0, 64, 0.0)}
    assert settings.run.seed == 7
    assert settings.rcgm.objective.groups.adv == 0
    assert not settings.rcgm.objective.rectifies
    assert settings.rcgm.objective.order == 2
    assert settings.twinflow.objective == Run().twinflow.objective
    assert settings.dmd2.objective.guidance == settings.twinflow.objective.enhanced_ratio
    with pytest.raises(ValueError, match=r"must be the same for all methods"):
        changed(settings, ["dmd2.batch=32"])


def test_methods_are_named_or_refused() -> None:
    assert find_methods("all") == ["flow-matching", "rcgm", "dmd2", "twinflow"]
    assert find_methods("dmd2, rcgm") == ["dmd2", "rcgm"]
    with pytest.raises(ValueError, match="'ddpm' is not one of flow-matching, rcgm, dmd2, twinflow, or all"):
        find_methods("rcgm,ddpm")
