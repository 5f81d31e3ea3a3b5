"""From prompts to token ids: the tokenizer, the chat template, and the bucket a prompt is padded to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from twinshot_engine.errors import InvalidRequestError


class Tokens(NamedTuple):
    """A prompt's token ids ``[1, L]`` int64, right-padded to its bucket L, and their true count ``[1]``.

    Both are on the host.
    """

    ids: Tensor
    length: Tensor


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    model_max_length: int
    pad_token_id: int | None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render a conversation, or tokenise it."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenise a text."""


class PromptTokenizer(Protocol):
    """Turns prompts into token ids as one family's text encoders want them."""

    max_tokens: int
    """Most tokens of a prompt with its template."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Every padded length that :meth:`pad` can return, shortest first."""

    def encode(self, prompt: str) -> list[int]:
        """Turn a prompt into token ids, template included.

        Raises:
            InvalidRequestError: there are more tokens than :attr:`max_tokens`.
        """

    def pad(self, ids: list[int]) -> Tokens:
        """Pad token ids on the right to their bucket; what fills it has no effect on real tokens."""


@dataclass(slots=True)
class ChatTokenizer:
    """Tokenises prompts as ``ZImagePipeline`` does; see :class:`PromptTokenizer`.

    Attributes:
        tokenizer: with a chat template.
        multiple: buckets are the multiples of this up to ``max_tokens``. The transformer gives an image
            another position after each of them, so a coarser bucket would draw another picture.
        max_tokens: most tokens of a prompt with its template.
    """

    tokenizer: Tokenizer
    multiple: int
    max_tokens: int

    @property
    def buckets(self) -> tuple[int, ...]:
        """Every padded length that :meth:`pad` can return, shortest first."""
        return tuple(range(self.multiple, self.bucket(self.max_tokens) + 1, self.multiple))

    def bucket(self, count: int) -> int:
        """The padded length of a prompt of ``count`` tokens."""
        return count + -count % self.multiple

    def encode(self, prompt: str) -> list[int]:
        """Turn a prompt into token ids, wrapped in the chat template.

        Raises:
            InvalidRequestError: there are more tokens than :attr:`max_tokens`.
        """
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        ids = cast("list[int]", self.tokenizer(chat, verbose=False)["input_ids"])
        if len(ids) > self.max_tokens:
            raise InvalidRequestError(
                f"The prompt has {len(ids)} tokens with its template, "
                f"more than the limit of {self.max_tokens}."
            )
        return ids

    def pad(self, ids: list[int]) -> Tokens:
        """Pad token ids on the right to their bucket; what fills it has no effect on real tokens."""
        filler = [self.tokenizer.pad_token_id or 0] * (self.bucket(len(ids)) - len(ids))
        return Tokens(torch.tensor([ids + filler]), torch.tensor([len(ids)]))
