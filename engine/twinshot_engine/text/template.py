"""Prompts in a fixed template, as ``QwenImagePipeline`` writes it.

The pipeline drops the hidden states of the first 34 tokens, which are those before the prompt. They are the
same every time, so an encoder keeps what later tokens need of them, and a prompt's token ids begin behind
them. The two pieces are tokenised apart: together, Qwen's tokenizer would join a line break at the start of a
prompt to the one before it, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.text.prompt import Tokenizer, Tokens

DROPPED_TOKENS = 34
"""Tokens at the start whose hidden states are not read."""

_BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_BEHIND = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(slots=True)
class TemplateTokenizer:
    """Tokenises prompts as ``QwenImagePipeline`` does; see :class:`~.prompt.PromptTokenizer`.

    Attributes:
        tokenizer: Qwen's.
        buckets: padded lengths, shortest first; padding has no effect, so few are enough.
        max_tokens: most tokens of a prompt, what stands behind it included; the last bucket's length.
        constant: the tokens before every prompt that are dropped.

    Raises:
        ValueError: the tokenizer splits special tokens, or makes fewer of the message than are dropped.
    """

    tokenizer: Tokenizer
    buckets: tuple[int, ...]
    max_tokens: int = field(init=False)
    constant: tuple[int, ...] = field(init=False)
    _rest: list[int] = field(init=False)

    def __post_init__(self) -> None:
        for special in ("<|im_start|>", "<|im_end|>"):
            if len(ids := self._tokenize(special)) != 1:
                raise ValueError(f"it makes {len(ids)} tokens of {special!r}, which is one of Qwen's own")
        before = self._tokenize(_BEFORE)
        if len(before) < DROPPED_TOKENS:
            raise ValueError(
                f"it makes {len(before)} tokens of the system message; at least {DROPPED_TOKENS} are expected"
            )
        self.constant, self._rest = tuple(before[:DROPPED_TOKENS]), before[DROPPED_TOKENS:]
        self.max_tokens = self.buckets[-1]

    def encode(self, prompt: str) -> list[int]:
        """Turn a prompt into the token ids behind :attr:`constant`.

        Raises:
            InvalidRequestError: there are more tokens than :attr:`max_tokens`.
        """
        ids = self._rest + self._tokenize(prompt + _BEHIND)
        if len(ids) > self.max_tokens:
            raise InvalidRequestError(
                f"The prompt has {len(ids)} tokens with its template, "
                f"more than the limit of {self.max_tokens}."
            )
        return ids

    def pad(self, ids: list[int]) -> Tokens:
        """Pad token ids on the right to their bucket; what fills it has no effect."""
        bucket = next(bucket for bucket in self.buckets if bucket >= len(ids))
        filler = [self.tokenizer.pad_token_id or 0] * (bucket - len(ids))
        return Tokens(torch.tensor([ids + filler]), torch.tensor([len(ids)]))

    def _tokenize(self, text: str) -> list[int]:
        return cast("list[int]", self.tokenizer(text, verbose=False)["input_ids"])
