"""Qwen3 as Z-Image reads it: the hidden states before the last layer.

``hidden_states[-2]`` never passes the last layer nor the final norm, so neither is built. Attention is
causal and padding stands on the right, so real tokens never see it and no mask is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from twinshot_engine.errors import InvalidRequestError

BUCKETS = (32, 64, 128, 256, 512)
"""Token counts a batch of prompts is padded to."""


class TextEmbeddings(NamedTuple):
    """Embeddings ``[B, L, D]`` of a batch of prompts and each prompt's token count ``[B]`` int64.

    The counts stay on the host, where they choose shapes without waiting for the device.
    """

    embeddings: Tensor
    lengths: Tensor


class Tokenizer(Protocol):
    """What the encoder needs of a transformers tokenizer."""

    model_max_length: int
    pad_token_id: int | None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render a conversation, or tokenise it."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenise a text."""


def build_model(config: Mapping[str, Any]) -> Qwen3Model:
    """Build the layers of a Qwen3 that Z-Image uses, with fresh weights.

    Args:
        config: a ``config.json`` whose ``num_hidden_layers`` counts the unused last layer, at least 2.

    Raises:
        ValueError: there are fewer than two layers, or the model is not a Qwen3.
    """
    if config.get("model_type") != "qwen3":
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported: 'qwen3' is")
    layers = int(config["num_hidden_layers"]) - 1
    if layers < 1:
        raise ValueError(f"num_hidden_layers {layers + 1} is too few: at least 2 are needed")
    kinds = config.get("layer_types")
    shorter = {**config, "num_hidden_layers": layers, "layer_types": kinds and kinds[:layers]}
    model = Qwen3Model(Qwen3Config(**shorter))
    model.norm = nn.Identity()  # type: ignore[assignment]
    return model


def place_model(model: Qwen3Model, device: torch.device) -> Qwen3Model:
    """Finish a model that was built on the meta device and then given weights on ``device``."""
    # Its rotary frequencies are computed, not stored, and so are still on the meta device.
    model.rotary_emb = Qwen3RotaryEmbedding(model.config).to(device)
    model.train(mode=False)
    return model


def is_used(name: str, config: Mapping[str, Any]) -> bool:
    """Say whether a stored parameter belongs to a layer that Z-Image uses."""
    name = name.removeprefix("model.")
    unused = (f"layers.{int(config['num_hidden_layers']) - 1}.", "norm.", "lm_head.")
    return not name.startswith(unused)


class TextEncoder(nn.Module):
    """A Qwen3, its tokenizer and its chat template."""

    def __init__(self, model: Qwen3Model, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = min(tokenizer.model_max_length, BUCKETS[-1])

    def tokenize(self, prompt: str) -> list[int]:
        """Turn a prompt into token ids, wrapped in the chat template as ``ZImagePipeline`` does.

        Raises:
            InvalidRequestError: there are more tokens than :attr:`max_tokens`.
        """
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        tokens = cast("list[int]", self.tokenizer(chat, verbose=False)["input_ids"])
        if len(tokens) > self.max_tokens:
            raise InvalidRequestError(
                f"The prompt has {len(tokens)} tokens with its template, "
                f"more than the limit of {self.max_tokens}."
            )
        return tokens

    def encode(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Embed prompts, padded on the right to the smallest bucket that holds the longest.

        Returns:
            Embeddings ``[B, bucket, D]``; those at or beyond a prompt's length mean nothing.

        Raises:
            InvalidRequestError: a prompt has too many tokens.
        """
        tokens = [self.tokenize(prompt) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in tokens])
        bucket = next(size for size in BUCKETS if size >= int(lengths.max()))
        ids = torch.tensor([row + [self.padding] * (bucket - len(row)) for row in tokens])
        return TextEmbeddings(self(ids.to(self.model.device)), lengths)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed right-padded token ids ``[B, L]`` as ``[B, L, D]``."""
        embeddings: Tensor = self.model(input_ids=tokens, use_cache=False).last_hidden_state
        return embeddings

    @property
    def padding(self) -> int:
        """The token that fills a bucket; its value has no effect on real tokens."""
        return self.tokenizer.pad_token_id or 0
