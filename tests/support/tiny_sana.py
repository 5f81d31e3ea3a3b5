"""A tiny random SANA or SANA-Sprint checkpoint, written by diffusers and transformers themselves."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from twinshot_engine.text.instruction import INSTRUCTION

TRANSFORMER = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "num_layers": 3,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 24,
    "cross_attention_dim": 48,
    "caption_channels": 40,
    "sample_size": 32,
}
SPRINT = TRANSFORMER | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
VAE = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": (8, 16, 16),
    "decoder_block_out_channels": (8, 16, 16),
    "encoder_layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 2, 1),
    "encoder_qkv_multiscales": ((), (), ()),
    "decoder_qkv_multiscales": ((), (), (5,)),
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
LITE = {
    "latent_channels": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (8, 8, 16, 16, 16, 16),
    "decoder_block_out_channels": (8, 8, 16, 16, 16, 16),
    "encoder_layers_per_block": (0, 1, 1, 1, 1, 1),
    "decoder_layers_per_block": (0, 3, 5, 4, 4, 4),
    "encoder_qkv_multiscales": ((),) * 6,
    "decoder_qkv_multiscales": ((),) * 6,
    "upsample_block_type": "pixel_shuffle",
    "decoder_conv_act_fn": "silu",
    "scaling_factor": 0.41407,
}
"""The layers of DC-AE lite's decoder, whose last convolution doubles the size, on narrow levels."""
TEXT = Gemma2Config(
    vocab_size=400,
    hidden_size=40,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    query_pre_attn_scalar=20,
    attn_logit_softcapping=3.0,
    max_position_embeddings=4096,
)


def make_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of few words, which begins texts as Gemma's does; not with more special tokens."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    special = ["<pad>", "<eos>", "<bos>", *more]
    trainer = BpeTrainer(
        vocab_size=399, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(["a photo of a red apple and two blue vases", *INSTRUCTION] * 4, trainer)
    if not more:
        bpe.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=special[0], eos_token=special[1], bos_token=special[2]
    )


def shake(module: nn.Module, std: float) -> None:
    """Add noise to every parameter, so that no zero or one hides a mistake."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=std)


def write(
    folder: Path, transformer: dict[str, object], *, sprint: bool, vae_config: dict[str, object] = VAE
) -> Path:
    """Save random parts as a pipeline's folder."""
    torch.manual_seed(7)
    network, vae, text = SanaTransformer2DModel(**transformer), AutoencoderDC(**vae_config), Gemma2Model(TEXT)
    for module, std in ((network, 0.1), (vae, 0.05), (text, 0.2)):
        shake(module, std)
    tokenizer = make_tokenizer()
    if sprint:
        SanaSprintPipeline(tokenizer, text, vae, network, SCMScheduler()).save_pretrained(folder)
    else:
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++"
        )
        SanaPipeline(tokenizer, text, vae, network, scheduler).save_pretrained(folder)
    return folder
