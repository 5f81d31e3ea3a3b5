"""The three text encoders of Stable Diffusion 3 as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.text.clip import ClipEncoder
from twinshot_engine.text.t5 import T5Encoder

T5_TOKENS = 256
"""What ``StableDiffusion3Pipeline`` pads prompts to for T5, and leaves in its place without one."""


class JointEncoders(nn.Module):
    """Two CLIPs, and a T5 beside them.

    The CLIPs are long chains of small kernels, and the T5 is twice as much work in large ones; on a GPU the
    former run beside the latter, on a stream of their own.

    Args:
        first: the CLIP of ``text_encoder``.
        second: the CLIP of ``text_encoder_2``.
        t5: None for a checkpoint without one, whose tokens are zeros.
        width: channels of a token for the transformer.
    """

    def __init__(self, first: ClipEncoder, second: ClipEncoder, t5: T5Encoder | None, width: int) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.t5 = t5
        self.width = width
        self._side: dict[torch.device, torch.cuda.Stream] = {}

    def forward(self, tokens: Tensor, clip_tokens: int) -> tuple[Tensor, Tensor]:
        """Embed a prompt.

        Args:
            tokens: ``[B, L]``: ids of each encoder, one behind the other.
            clip_tokens: how many each CLIP has.

        Returns:
            The tokens of the CLIPs, side by side, and behind them those of the T5:
            ``[B, clip_tokens + 256, width]``; and both pooled embeddings, ``[B, pooled]``.
        """
        *for_clips, for_t5 = tokens.tensor_split([clip_tokens, 2 * clip_tokens], dim=1)
        if tokens.is_cuda:
            hidden, pooled, long = self._beside(for_clips, for_t5)
        else:
            (hidden, pooled), long = self._read_clips(for_clips), self._read_t5(for_t5)
        if long is None:
            long = hidden.new_zeros(tokens.shape[0], T5_TOKENS, self.width)
        wide = functional.pad(hidden, (0, self.width - hidden.shape[-1]))
        return torch.cat((wide, long), dim=1), pooled

    def _beside(self, for_clips: list[Tensor], for_t5: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the CLIPs on a stream of their own; what they make is used when both are done."""
        main, device = torch.cuda.current_stream(for_t5.device), for_t5.device
        if device not in self._side:
            self._side[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side = self._side[device]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            hidden, pooled = self._read_clips(for_clips)
        long = self._read_t5(for_t5)
        main.wait_stream(side)
        return hidden, pooled, long

    def _read_clips(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        read = [clip(own) for clip, own in zip((self.first, self.second), ids, strict=True)]
        hidden, pooled = (torch.cat(parts, dim=-1) for parts in zip(*read, strict=True))
        return hidden, pooled

    def _read_t5(self, ids: Tensor) -> Tensor | None:
        return None if self.t5 is None else self.t5(ids)
