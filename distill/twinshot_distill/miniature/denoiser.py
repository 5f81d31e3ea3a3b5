"""Text encoder and transformer as stages 2 and 3 train them: built fresh, bound to a condition, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Model

from twinshot_distill.miniature.configuration import TEXT_ENCODER, TRANSFORMER
from twinshot_distill.miniature.dataset import LONG, SHORT, Captions
from twinshot_distill.miniature.tokenizer import templated
from twinshot_distill.objective import Network
from twinshot_engine.text.qwen3 import build_model
from twinshot_engine.transformer.single_stream import SingleStreamConfig, SingleStreamTransformer


class Denoiser(nn.Module):
    """A text encoder and a transformer that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text: Qwen3Model = build_model(TEXT_ENCODER)
        self.transformer = SingleStreamTransformer(SingleStreamConfig.from_dict(TRANSFORMER))
        self.transformer.init_weights()

    def embed(self, captions: Captions) -> Condition:
        """Run the text encoder on token ids [B, L]."""
        states: Any = self.text(input_ids=captions.tokens.long(), use_cache=False)
        return Condition(states.last_hidden_state, captions.lengths)


@dataclass(frozen=True, slots=True)
class Condition:
    """Caption embeddings [B, L, D] and their lengths [B]."""

    embeddings: Tensor
    lengths: Tensor

    def __getitem__(self, rows: slice, /) -> Condition:
        return Condition(self.embeddings[rows], self.lengths[rows])

    def repeated(self, count: int) -> Condition:
        """One row as `count` rows."""
        return Condition(self.embeddings.repeat(count, 1, 1), self.lengths.repeat(count))


def velocity(
    transformer: SingleStreamTransformer, x_t: Tensor, t: Tensor, r: Tensor, condition: Condition
) -> Tensor:
    """The transformer's velocity in bf16, as fp32 [B, 8, 32, 32]; times keep their sign (training only)."""
    with torch.autocast(x_t.device.type, torch.bfloat16):
        out = transformer.velocity(x_t, t, r, condition.embeddings, condition.lengths, signed=True)
    return out.float()


def in_chunks(transformer: SingleStreamTransformer, chunk: int) -> Network[Condition]:
    """A velocity that runs `chunk` rows at a time where nothing is trained: one compiled shape serves all."""

    def run(x_t: Tensor, t: Tensor, r: Tensor, condition: Condition) -> Tensor:
        if torch.is_grad_enabled():
            return velocity(transformer, x_t, t, r, condition)
        parts = [slice(start, start + chunk) for start in range(0, len(x_t), chunk)]
        return torch.cat(
            [velocity(transformer, x_t[rows], t[rows], r[rows], condition[rows]) for rows in parts]
        )

    return run


def compile_blocks(transformer: SingleStreamTransformer) -> None:
    """Compile each block for fixed shapes: one compilation serves all blocks of a kind."""
    dynamo: Any = import_module("torch._dynamo.config")
    dynamo.automatic_dynamic_shapes = False
    dynamo.recompile_limit = 64
    for blocks in (transformer.noise_refiner, transformer.context_refiner, transformer.layers):
        for block in blocks:
            block.compile(dynamic=False)


def empty_captions(
    tokenizer: PreTrainedTokenizerFast, count: int, width: int, device: torch.device
) -> Captions:
    """Captions of the empty prompt, the unconditional half of guidance: tokens [count, width]."""
    row = tokenizer(templated("")).input_ids
    tokens = torch.full((count, width), tokenizer.pad_token_id, dtype=torch.int32, device=device)
    tokens[:, : len(row)] = torch.tensor(row, dtype=torch.int32, device=device)
    return Captions(tokens, torch.full((count,), len(row), device=device))


def bucket(share_of_long: float) -> int:
    """Which text bucket a step trains: 64 tokens with the given probability, else 32."""
    return LONG if float(torch.rand(())) < share_of_long else SHORT
