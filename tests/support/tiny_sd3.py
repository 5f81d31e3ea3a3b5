"""A tiny random Stable Diffusion 3.5 checkpoint, written by diffusers and transformers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

# Widths are multiples of 16, so that all of it can be fp8.
LATENT_CHANNELS = 4
CLIP_TOKENS = 24
TRANSFORMER: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 24,
    "dual_attention_layers": (0, 1),
    "qk_norm": "rms_norm",
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 4,
    "scaling_factor": 1.5,
    "shift_factor": 0.06,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def make_tokenizer(*, begin: str | None, end: str, pad: str, length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that wraps a prompt in its special tokens."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = list(dict.fromkeys(token for token in (pad, begin, end) if token))
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["a photo of a red apple and two blue vases"] * 4, trainer)
    # CLIP's published tokenizer gives the end token the largest id; so do these.
    bpe.add_special_tokens([end])
    wrapped = [(token, bpe.token_to_id(token)) for token in special if token != pad or token == end]
    single = f"{begin} $A {end}" if begin else f"$A {end}"
    bpe.post_processor = TemplateProcessing(single=single, special_tokens=wrapped)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=end, bos_token=begin, model_max_length=length
    )


def make_clip(width: int, pooled: int, act: str, eos: int) -> CLIPTextModelWithProjection:
    """Build a three-layer CLIP."""
    config = CLIPTextConfig(
        vocab_size=330,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=pooled,
        hidden_act=act,
        bos_token_id=0,
        pad_token_id=0,
        eos_token_id=eos,
    )
    return CLIPTextModelWithProjection(config).eval()


def make_t5() -> T5EncoderModel:
    """Build a two-layer T5 of version 1.1."""
    config = T5Config(
        vocab_size=330,
        d_model=TRANSFORMER["joint_attention_dim"],
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def shake(module: torch.nn.Module, std: float = 0.1) -> None:
    """Add noise to every parameter, so that no zero or one hides a mistake."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=std)


def write_checkpoint(folder: Path, *, second: bool = True, with_t5: bool = True) -> None:
    """Save random parts as a ``StableDiffusion3Pipeline`` folder.

    Args:
        folder: where to.
        second: whether to add TwinFlow's second embedder.
        with_t5: whether there is a third encoder.
    """
    torch.manual_seed(7)
    transformer, vae = SD3Transformer2DModel(**TRANSFORMER), AutoencoderKL(**VAE)
    shake(transformer)
    shake(vae, 0.05)
    # Not the sines that it starts as, so that reading it from the checkpoint matters.
    transformer.pos_embed.pos_embed.add_(torch.randn_like(transformer.pos_embed.pos_embed), alpha=0.3)
    clip = make_tokenizer(begin="<start>", end="<end>", pad="<end>", length=CLIP_TOKENS)
    other = make_tokenizer(begin="<start>", end="<end>", pad="!", length=CLIP_TOKENS)
    first, big = make_clip(16, 8, "quick_gelu", 2), make_clip(32, 12, "gelu", other.eos_token_id)
    for encoder in (first, big):
        shake(encoder)
    long = make_t5() if with_t5 else None
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=first,
        tokenizer=clip,
        text_encoder_2=big,
        tokenizer_2=other,
        text_encoder_3=long,
        tokenizer_3=make_tokenizer(begin=None, end="</s>", pad="<pad>", length=512) if with_t5 else None,
    ).save_pretrained(folder)
    if second:
        _add_second_embedder(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def _add_second_embedder(weights: Path) -> None:
    stored = load_file(weights)
    copies = {
        name.replace("time_text_embed.", "time_text_embed_2."): w
        for name, w in stored.items()
        if "time_text_embed." in name
    }
    stored |= {name: w + 0.1 * torch.randn_like(w) for name, w in copies.items()}
    save_file(stored, weights, metadata={"format": "pt"})
