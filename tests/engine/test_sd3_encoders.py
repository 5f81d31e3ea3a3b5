"""CLIP and T5 against transformers' own, and the tokenizer that feeds all three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd3 import CLIP_TOKENS, make_clip, make_t5, make_tokenizer, shake
from torch import Tensor, nn

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.precision import FP8, quantize_projections
from twinshot_engine.text import clip, t5
from twinshot_engine.text.joint_prompt import JointTokenizer

CPU = torch.device("cpu")


def serve(stock: Any, folder: Path, *, fp8: bool = False) -> Any:
    """Save a stock encoder and load it in the form that serves."""
    kind = clip if isinstance(stock.config.model_type, str) and "clip" in stock.config.model_type else t5
    stock.save_pretrained(folder / "encoder")
    checkpoint = Checkpoint(folder, "test")
    with torch.device("meta"):
        form = clip.ClipEncoder if kind is clip else t5.T5Encoder
        encoder = checkpoint.build("encoder", lambda config: form(kind.read_config(config)))
    if fp8:
        encoder.to(torch.bfloat16)
        quantize_projections(encoder, lambda _name: True)
    stored, slots = kind.find_encoder(checkpoint, "encoder"), kind.encoder_slots(encoder)
    stored.check(encoder, slots)
    stored.fill(encoder, slots, CPU)
    return encoder


def ids_of(text: str, length: int, *, pad: str) -> Tensor:
    tokenizer = make_tokenizer(begin="<start>", end="<end>", pad=pad, length=length)
    return tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("pad", ["<end>", "!"])
@pytest.mark.parametrize("known_end", [True, False], ids=["end in config", "end as old configs say"])
@torch.no_grad()
def test_clip(tmp_path: Path, act: str, pad: str, known_end: bool) -> None:
    torch.manual_seed(1)
    tokens = torch.cat([ids_of(text, CLIP_TOKENS, pad=pad) for text in ("a red apple", "vase " * 40, "")])
    end = int(tokens[1, -1])
    stock = make_clip(32, 12, act, end if known_end else 2)
    shake(stock)
    read = stock(tokens, output_hidden_states=True)
    hidden, pooled = serve(stock, tmp_path)(tokens)
    assert far(hidden, read.hidden_states[-2]) < 1e-5
    assert far(pooled, read.text_embeds) < 1e-5


@torch.no_grad()
def test_t5(tmp_path: Path) -> None:
    torch.manual_seed(2)
    stock = make_t5()
    shake(stock)
    # Beyond the distance at which buckets end, in both directions, with padding that counts.
    tokens = torch.randint(0, 330, (2, 150))
    tokens[0, 20:] = 0
    assert far(serve(stock, tmp_path)(tokens), stock(tokens)[0]) < 1e-5


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20)])
def test_position_buckets_are_those_of_transformers(buckets: int, distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(300)
    relative = place[None, :] - place[:, None]
    theirs = T5Attention._relative_position_bucket(relative, True, buckets, distance)
    assert torch.equal(t5.position_buckets(300, buckets, distance), theirs)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_fp8_differs_by_its_rounding_alone(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(3)
    stock: nn.Module = make_clip(32, 16, "gelu", 2) if kind == "clip" else make_t5()
    tokens = torch.randint(0, 330, (1, CLIP_TOKENS))
    shake(stock, 0.02)
    exact = stock(tokens).last_hidden_state
    if kind == "clip":
        exact = stock(tokens, output_hidden_states=True).hidden_states[-2]
    served = serve(stock, tmp_path, fp8=True)
    assert served.layers[0].get_parameter("to_qkv.weight").dtype == FP8
    result = served(tokens)
    assert 1e-3 < far(result[0] if kind == "clip" else result, exact) < 0.1


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (clip, {"model_type": "siglip_text_model"}, "model_type 'siglip_text_model' is not supported"),
        (clip, {"hidden_act": "relu"}, "hidden_act 'relu' is not supported: 'gelu', 'quick_gelu' are"),
        (clip, {"num_hidden_layers": 1}, "num_hidden_layers 1 is too few"),
        (t5, {"model_type": "mt5"}, "model_type 'mt5' is not supported: 't5' is"),
        (t5, {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu' is not supported: 'gated-gelu' is"),
    ],
)
def test_other_encoders_are_refused(module: Any, change: dict[str, Any], message: str) -> None:
    right = {"model_type": "clip_text_model"} if module is clip else {"model_type": "t5"}
    with pytest.raises(ValueError, match=message):
        module.read_config({**right, **change})


def make_tokenizers() -> tuple[Any, Any, Any]:
    first = make_tokenizer(begin="<start>", end="<end>", pad="<end>", length=CLIP_TOKENS)
    second = make_tokenizer(begin="<start>", end="<end>", pad="!", length=CLIP_TOKENS)
    return first, second, make_tokenizer(begin=None, end="</s>", pad="<pad>", length=512)


def test_every_encoder_gets_the_ids_of_its_own_tokenizer() -> None:
    first, second, long = make_tokenizers()
    tokenizer = JointTokenizer((first, second), long, CLIP_TOKENS, 32)
    prompt = "two blue vases"
    ids, length = tokenizer.pad(tokenizer.encode(prompt))
    expected = [
        *first(prompt, padding="max_length", max_length=CLIP_TOKENS).input_ids,
        *second(prompt, padding="max_length", max_length=CLIP_TOKENS).input_ids,
        *long(prompt, padding="max_length", max_length=32).input_ids,
    ]
    assert ids.tolist() == [expected]
    assert tokenizer.buckets == (2 * CLIP_TOKENS + 32,)
    assert int(length) == 2 * CLIP_TOKENS + len(long(prompt).input_ids)


def test_what_no_encoder_reads_whole_is_refused() -> None:
    first, second, long = make_tokenizers()
    prompt = "two blue vases " * 9
    count = len(long(prompt).input_ids)
    fits = JointTokenizer((first, second), long, CLIP_TOKENS, count)
    assert len(fits.encode(prompt)) == fits.buckets[0]
    with pytest.raises(InvalidRequestError, match=f"has {count} tokens, more than the limit of {count - 1}"):
        JointTokenizer((first, second), long, CLIP_TOKENS, count - 1).encode(prompt)
    alone = JointTokenizer((first, second), None, CLIP_TOKENS, 256)
    with pytest.raises(InvalidRequestError, match=f"more than the limit of {CLIP_TOKENS}"):
        alone.encode(prompt)
    assert alone.pad(alone.encode("a vase")).ids.shape == (1, 2 * CLIP_TOKENS)
