"""Z-Image, on the engine's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_distill.families.base import Caption, Embedding, Family, OpenModel
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.text.qwen3 import Qwen3Encoder, encoder_slots, find_encoder, read_config
from twinshot_engine.transformer import SingleStreamConfig, SingleStreamTransformer
from twinshot_engine.transformer.config import TOKEN_MULTIPLE
from twinshot_engine.transformer.folding import has_second_embedder, open_form
from twinshot_engine.vae.kl import AutoencoderKL
from twinshot_engine.vae.kl_config import KLConfig
from twinshot_engine.weights import same_names

_SECOND, _FIRST = "t_embedder_2.", "t_embedder."


class ZImageModel(OpenModel):
    """The single stream; its times keep their sign, as the released rule cannot tell both trajectories."""

    transformer: SingleStreamTransformer

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
        """See :meth:`SingleStreamTransformer.velocity`."""
        return self.transformer.velocity(x_t, t, r, caption.tokens, caption.lengths, signed=True)

    def blocks(self) -> Sequence[nn.Module]:
        """Refiners and layers."""
        parts = (self.transformer.noise_refiner, self.transformer.context_refiner, self.transformer.layers)
        return [block for part in parts for block in part]

    def shards(self) -> Sequence[nn.Module]:
        """Attention and feed-forward of each block, whose norms and modulation are read from outside."""
        names = ("attention", "feed_forward")
        return [block.get_submodule(name) for block in self.blocks() for name in names]


def open_z_image(checkpoint: Checkpoint, single_time: bool) -> ZImageModel:
    """Read the transformer; where it has no second time embedder, that starts as a copy of the first."""
    stored = checkpoint.part("transformer")
    stored_second = has_second_embedder(stored)
    keep_second = stored_second or not single_time

    def config_of(config: dict[str, Any]) -> SingleStreamConfig:
        return SingleStreamConfig.from_dict({**config, "second_time_embedder": keep_second})

    transformer = open_form(checkpoint.build("transformer", config_of))
    slots = same_names(transformer)
    read = slots if stored_second else {n: slot for n, slot in slots.items() if not n.startswith(_SECOND)}
    stored.check(transformer, read)
    stored.fill(transformer, read, torch.device("cpu"))
    if keep_second and not stored_second:
        second = {
            n.removeprefix(_FIRST): p for n, p in transformer.named_parameters() if n.startswith(_FIRST)
        }
        transformer.get_submodule("t_embedder_2").load_state_dict(second)
    transformer.requires_grad_(requires_grad=True)
    return ZImageModel(transformer, single_time=single_time)


class ZImageEncoders:
    """Qwen3 up to the layer that is read, and the KL autoencoder."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._device, self._tokenizer = device, checkpoint.tokenizer()
        with torch.device("meta"):
            self._text = checkpoint.build("text_encoder", lambda config: Qwen3Encoder(read_config(config)))
            self._vae = checkpoint.build("vae", lambda config: AutoencoderKL(KLConfig.from_dict(config)))
        if device.type == "cuda":
            self._text.to(torch.bfloat16)
        find_encoder(checkpoint).fill(self._text, encoder_slots(self._text), device)
        checkpoint.part("vae").fill(self._vae, same_names(self._vae), device)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> list[Embedding]:
        """Embed prompts in their chat template."""
        return [{"tokens": self._states(prompt)} for prompt in prompts]

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the latents."""
        mean, _ = self._vae.encode(pictures.to(self._device))
        return self._vae.normalize(mean)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode."""
        pictures: Tensor = self._vae(latents.to(self._device))
        return pictures

    def drop_text(self) -> None:
        """Let go of the text encoder."""
        del self._text

    def _states(self, prompt: str) -> Tensor:
        turn = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self._tokenizer(text).input_ids], device=self._device)
        states: Tensor = self._text(ids)
        return states[0].float()


def most_tokens(checkpoint: Checkpoint) -> int:
    """The longest caption that a checkpoint's transformer takes."""
    return checkpoint.build("transformer", SingleStreamConfig.from_dict).max_caption_tokens


FAMILY = Family(
    open_model=open_z_image,
    encoders=ZImageEncoders,
    token_multiple=TOKEN_MULTIPLE,
    pixel_multiple=16,
    lora_targets=(
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "w1",
        "w2",
        "w3",
        "t_embedder.mlp.0",
        "t_embedder.mlp.2",
    ),
    most_tokens=most_tokens,
)
