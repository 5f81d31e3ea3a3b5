"""Token ids for two CLIP encoders and a T5 that read the same prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.text.prompt import Tokens


@dataclass(slots=True)
class JointTokenizer:
    """Tokenises prompts as ``StableDiffusion3Pipeline`` does, for one encoder after another.

    CLIP reads the beginning of a long prompt alone. Every encoder's ids have a fixed length, since none of
    them is told what is padding.

    Attributes:
        clips: tokenizers of the CLIP encoders.
        t5: tokenizer of the T5, None without one.
        clip_tokens: ids for each CLIP.
        t5_tokens: ids for the T5.
        max_tokens: most tokens of a prompt, with what its tokenizer adds: of the encoder that reads furthest.
    """

    clips: tuple[Any, ...]
    t5: Any
    clip_tokens: int
    t5_tokens: int
    max_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.max_tokens = self.clip_tokens if self.t5 is None else self.t5_tokens

    @property
    def lengths(self) -> list[int]:
        """Ids for each encoder."""
        return [self.clip_tokens] * len(self.clips) + ([] if self.t5 is None else [self.t5_tokens])

    @property
    def buckets(self) -> tuple[int, ...]:
        """The length of all ids together."""
        return (sum(self.lengths),)

    def encode(self, prompt: str) -> list[int]:
        """Turn a prompt into ids: those of the CLIPs padded, those of the T5 not yet.

        Raises:
            InvalidRequestError: no encoder would read all of the prompt.
        """
        ids = [number for clip in self.clips for number in self._for_clip(clip, prompt)]
        last = self._tokenize(self.clips[0] if self.t5 is None else self.t5, prompt)
        if len(last) > self.max_tokens:
            raise InvalidRequestError(
                f"The prompt has {len(last)} tokens, more than the limit of {self.max_tokens}."
            )
        return ids if self.t5 is None else ids + last

    def pad(self, ids: list[int]) -> Tokens:
        """Pad the T5's ids on the right."""
        missing = self.buckets[0] - len(ids)
        filler = [] if self.t5 is None else [self.t5.pad_token_id] * missing
        return Tokens(torch.tensor([ids + filler]), torch.tensor([len(ids)]))

    def _for_clip(self, clip: Any, prompt: str) -> list[int]:
        return self._tokenize(
            clip, prompt, padding="max_length", max_length=self.clip_tokens, truncation=True
        )

    def _tokenize(self, tokenizer: Any, prompt: str, **options: Any) -> list[int]:
        return cast("list[int]", tokenizer(prompt, verbose=False, **options)["input_ids"])
