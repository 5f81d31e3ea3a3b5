"""DMD2 on the miniature, to compare TwinFlow with: from the same flow model, with all that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from twinshot_distill.averages import RunningAverage, frozen_copy, parameters_of
from twinshot_distill.dmd import DmdNetworks, DmdObjective, fake_terms, generator_terms
from twinshot_distill.miniature.dataset import LONG, SHORT, LatentSource
from twinshot_distill.miniature.denoiser import (
    Condition,
    Denoiser,
    bucket,
    compile_blocks,
    empty_captions,
    in_chunks,
    velocity,
)
from twinshot_distill.optimizer import OptimizerSettings
from twinshot_engine.transformer.blocks import FinalLayer
from twinshot_engine.transformer.single_stream import SingleStreamTransformer

_OPTIMIZER = OptimizerSettings(learning_rate=3e-4, betas=(0.9, 0.95), warm_up=80, final_share=0.05)
_CHANNELS = (64, 128, 128)


@dataclass(frozen=True, slots=True)
class DmdSettings:
    """The transformer alone, moved as in stage 3; so are fake network and critic."""

    seconds: float = 60.0
    batch: int = 512
    ema: float = 0.995
    long_share: float = 0.1
    objective: DmdObjective = field(default_factory=DmdObjective)
    optimizer: OptimizerSettings = _OPTIMIZER


class Critic(nn.Module):
    """Tells data from samples by what the first layers of a network make of them.

    Its own weights are a final layer, which turns their tokens into a map of the latents' shape, and
    convolutions that read the map as one logit. The layers before are the fake network's, shared with it.
    """

    def __init__(self, fake: SingleStreamTransformer, depth: float, side: int = 32) -> None:
        """Share the first layers.

        Args:
            fake: the network.
            depth: how much of its layers, 0 to 1; at least one is read.
            side: of the latents, a multiple of 8.
        """
        super().__init__()
        self.map = FinalLayer(fake.config, folded=False)
        self.logit = _logit(fake.config.in_channels, side)
        # In a tuple it is no part of this module, whose weights are its own alone.
        self._trunk = (_first_layers(fake, max(1, round(depth * fake.config.n_layers)), self.map),)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Logits [B] of latents x_t [B, C, side, side] at times t [B]."""
        features = velocity(self._trunk[0], x_t, t, t, condition)
        out: Tensor = self.logit(features).squeeze(1)
        return out


def _first_layers(fake: SingleStreamTransformer, count: int, final: FinalLayer) -> SingleStreamTransformer:
    """A transformer of a network's own modules, cut after `count` layers and with another final layer."""
    cut = SingleStreamTransformer(replace(fake.config, n_layers=count))
    for name, module in fake.named_children():
        setattr(cut, name, module)
    for name, parameter in fake.named_parameters(recurse=False):
        setattr(cut, name, parameter)
    cut.layers = nn.ModuleList(list(fake.layers)[:count])
    cut.all_final_layer = nn.ModuleDict({fake.config.patch_name: final})
    return cut


def _logit(channels: int, side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in _CHANNELS:
        layers += [nn.Conv2d(channels, wide, 4, 2, 1), nn.GroupNorm(8, wide), nn.SiLU()]
        channels = wide
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, side // 8), nn.Flatten())


class DmdTrainee:
    """The models of DMD2 and one training step; see :class:`~twinshot_distill.stepping.CapturableTrainee`."""

    def __init__(
        self, flow: Denoiser, pool: LatentSource, tokenizer: PreTrainedTokenizerFast, settings: DmdSettings
    ) -> None:
        self._pool, self._settings = pool, settings
        device = next(flow.parameters()).device
        self._empty = {width: empty_captions(tokenizer, 1, width, device) for width in (SHORT, LONG)}
        self.generator = deepcopy(flow.transformer).requires_grad_(requires_grad=True)
        self.fake = deepcopy(self.generator)
        self.real = frozen_copy(self.generator)
        self.critic = Critic(self.fake, settings.objective.critic_depth).to(device)
        self.averaged = frozen_copy(flow)
        self._average = RunningAverage.of(self.averaged.transformer, self.generator, settings.ema)
        self._moves_generator = False
        self.networks: DmdNetworks[Condition] = DmdNetworks(
            in_chunks(self.generator, settings.batch),
            in_chunks(self.real, settings.batch),
            in_chunks(self.fake, settings.batch),
            self.critic,
        )

    def compile(self) -> None:
        """Compile the blocks of all models; the critic's are the fake network's."""
        for model in (self.generator, self.real, self.fake):
            compile_blocks(model)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return parameters_of(generator=self.generator, fake=self.fake, critic=self.critic)

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """The generator's losses, or those of fake network and critic, on a batch of the pool."""
        return self.terms(self.prepare(step))

    def prepare(self, step: int) -> int:
        """Renew the pool; a step's kind is its text bucket, negative where it is the generator's."""
        self._pool.renew(step)
        width = bucket(self._settings.long_share)
        return -width if self._settings.objective.trains_generator(step) else width

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The loss of a kind of step."""
        objective, width = self._settings.objective, abs(kind)
        self._moves_generator = kind < 0
        x, captions = self._pool.sample(self._settings.batch, width)
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
            given, nothing = self.averaged.embed(captions), self.averaged.embed(self._empty[width])
        if self._moves_generator:
            return generator_terms(self.networks, objective, x, given, nothing.repeated(len(x)))
        return fake_terms(self.networks, objective, x, given)

    def after_step(self) -> None:
        """Average the generator's weights, if it was its step."""
        if self._moves_generator:
            self._average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        """What is trained, and the generator's average; the rest never changes."""
        return self.parameters() | parameters_of(average=self.averaged.transformer)

    def numbers(self) -> Mapping[str, float]:
        """How far average and pool are."""
        return {"average": self._average.decay, "pool": self._pool.position}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take up numbers of an earlier state."""
        self._average.decay = numbers["average"]
        self._pool.refill(int(numbers["pool"]))
