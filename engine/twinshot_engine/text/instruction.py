"""SANA's prompts: an instruction of several lines before the user's words.

The instruction is a constant of the trained model, word for word as published with it (NVlabs/Sana,
``configs/sana_app_config``; Apache-2.0): another one would give other pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.text.prompt import Tokenizer, Tokens

INSTRUCTION = (
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual "
        "descriptions suitable for image generation. Evaluate the level of detail in the user prompt:"
    ),
    (
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, "
        "and spatial relationships to create vivid and concrete scenes."
    ),
    (
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating."
    ),
    "Here are examples of how to transform or refine prompts:",
    (
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round "
        "shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red "
        "flowers."
    ),
    (
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
        "double-decker bus passing by towering glass skyscrapers."
    ),
    (
        "Please generate only the enhanced description for the prompt below and avoid including any "
        "additional commentary or evaluations:"
    ),
    "User Prompt: ",
)
"""Lines that stand before a prompt; the last is not ended."""

CAPTION_TOKENS = 300
"""Most hidden states that the transformer reads: the first token's and the last 299 of a full prompt."""

MULTIPLE = 64
"""Buckets of a prompt's own tokens are multiples of this."""


@dataclass(slots=True)
class InstructedTokenizer:
    """Tokenises prompts as ``SanaPipeline`` does; see :class:`~twinshot_engine.text.prompt.PromptTokenizer`.

    A prompt is put behind the instruction, and what all prompts then begin with is left out again: an encoder
    knows it already. The cut is at the instruction's last line break, across which no word reaches.

    Attributes:
        tokenizer: any; it adds its own special tokens.
        prefix: ids of the instruction's whole lines.
        dropped: how many tokens behind the prefix belong to the instruction alone.
        max_tokens: most tokens of a prompt behind the prefix.
    """

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    dropped: int
    max_tokens: int

    @property
    def buckets(self) -> tuple[int, ...]:
        """Every padded length that :meth:`pad` can return, shortest first."""
        return tuple(range(MULTIPLE, self._bucket(self.max_tokens) + 1, MULTIPLE))

    def encode(self, prompt: str) -> list[int]:
        """Turn a prompt into the token ids behind the prefix.

        Raises:
            InvalidRequestError: there are more tokens than :attr:`max_tokens`, or none of the prompt's own.
        """
        ids = _after_specials(self.tokenizer, INSTRUCTION[-1] + prompt.lower().strip())
        if len(ids) <= self.dropped:
            raise InvalidRequestError(
                "The prompt cannot be told from the instruction before it: begin otherwise."
            )
        if len(ids) > self.max_tokens:
            raise InvalidRequestError(
                f"The prompt has {len(ids)} tokens with its template, "
                f"more than the limit of {self.max_tokens}."
            )
        return ids

    def pad(self, ids: list[int]) -> Tokens:
        """Pad token ids on the right to their bucket; what fills it has no effect on real tokens."""
        filler = [self.tokenizer.pad_token_id or 0] * (self._bucket(len(ids)) - len(ids))
        return Tokens(torch.tensor([ids + filler]), torch.tensor([len(ids)]))

    def _bucket(self, count: int) -> int:
        return count + -count % MULTIPLE


def instructed(tokenizer: Any) -> InstructedTokenizer:
    """Find where prompts begin to differ.

    The pipeline pads a prompt to the instruction's own count of tokens plus 298 and keeps the first and the
    last 299 hidden states: all from the instruction's last token on, which a prompt's first word may join.

    Raises:
        CheckpointError: the tokenizer joins the instruction's lines.
    """
    whole, lines = "\n".join(INSTRUCTION), "\n".join((*INSTRUCTION[:-1], ""))
    every, prefix = _ids(tokenizer, whole), _ids(tokenizer, lines)
    # Prompts are tokenised behind the last line break alone, which takes a tenth of the time.
    if not len(prefix) < len(every) or prefix + _after_specials(tokenizer, INSTRUCTION[-1]) != every:
        raise CheckpointError("The tokenizer joins lines or ends texts by a token: it cannot be SANA's.")
    dropped = len(every) - 1 - len(prefix)
    return InstructedTokenizer(tokenizer, tuple(prefix), dropped, dropped + CAPTION_TOKENS - 1)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def _after_specials(tokenizer: Any, text: str) -> list[int]:
    """Tokenise without what the tokenizer puts before every text."""
    return _ids(tokenizer, text)[len(_ids(tokenizer, "")) :]
