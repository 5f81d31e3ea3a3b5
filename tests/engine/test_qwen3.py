"""The text encoder against the whole Qwen3 it is cut from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Model

from twinshot_engine.engine import Engine
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.text import CaptionCache, ChatTokenizer, Qwen3Encoder
from twinshot_engine.text.qwen3 import build_model, encoder_slots, find_encoder, read_config
from twinshot_engine.weights import Slot


@pytest.fixture
def encoder(engine: Engine) -> Qwen3Encoder:
    return engine._model.text  # the seam under test is the encoder itself


@pytest.fixture
def prompts(engine: Engine) -> ChatTokenizer:
    return engine._model.tokenizer


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Qwen3Model:
    return Qwen3Model.from_pretrained(tiny / "text_encoder").eval()


@torch.no_grad()
def test_equals_the_hidden_states_before_the_last(encoder: Qwen3Encoder, whole: Qwen3Model) -> None:
    tokens = torch.randint(0, 383, (3, 64))
    mask = torch.arange(64) < torch.tensor([[64], [20], [1]])
    expected = whole(tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder(tokens)[mask], expected[mask], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_bucket_does_not_change_real_tokens(encoder: Qwen3Encoder, prompts: ChatTokenizer) -> None:
    ids = prompts.encode("a red apple")
    padded = prompts.pad(ids)
    assert (padded.ids.shape, padded.length.tolist()) == ((1, 32), [len(ids)])
    exact = encoder(torch.tensor([ids]))
    for bucket in (32, 96):
        wider = torch.randint(0, 383, (1, bucket))
        wider[0, : len(ids)] = torch.tensor(ids)
        torch.testing.assert_close(encoder(wider)[:, : len(ids)], exact, rtol=1e-5, atol=1e-5)


def test_buckets_are_the_multiples_up_to_the_limit(prompts: ChatTokenizer) -> None:
    assert prompts.buckets == (32, 64, 96, 128, 160, 192)
    assert [prompts.bucket(count) for count in (1, 32, 33, 192)] == [32, 32, 64, 192]


def test_prompts_are_wrapped_in_the_chat_template(prompts: ChatTokenizer, tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    text = tokenizer.decode(prompts.encode("a red apple"))
    assert text == "<|im_start|>user\na red apple<|im_end|>\n<|im_start|>assistant\n"


def test_too_many_tokens_are_counted(prompts: ChatTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"The prompt has \d{3,} tokens .* the limit of 192\."):
        prompts.encode("vase " * 200)


def test_only_used_layers_are_read(whole: Qwen3Model, tiny: Path) -> None:
    stored = find_encoder(find_checkpoint(str(tiny)))
    unused = {name for name in stored.headers if stored.ignored(name)}
    assert unused == {name for name in whole.state_dict() if name.startswith(("layers.2.", "norm."))}
    assert stored.ignored("lm_head.weight")
    with torch.device("meta"):
        encoder = Qwen3Encoder(read_config(whole.config.to_dict()))
    assert encoder_slots(encoder).keys() == stored.headers.keys() - unused


def test_packed_rows_stand_in_order(whole: Qwen3Model) -> None:
    with torch.device("meta"):
        slots = encoder_slots(Qwen3Encoder(read_config(whole.config.to_dict())))
    packed = [slots[f"layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert packed == [Slot("layers.0.to_qkv.weight", slice(a, b)) for a, b in ((0, 48), (48, 64), (64, 80))]


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = CaptionCache(max_bytes=100)
    ten = torch.zeros(10)  # 40 bytes
    cache.put("a", ten)
    cache.put("b", ten)
    assert cache.get("a") is ten
    cache.put("c", ten)
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    statistics = cache.statistics
    assert (statistics.hits, statistics.misses, statistics.entries, statistics.bytes) == (3, 1, 2, 80)
    cache.put("too large", torch.zeros(26))
    cache.put("a", torch.ones(10))  # what is there stays
    assert cache.get("too large") is None
    assert cache.get("a") is ten
    cache.clear()
    assert (cache.statistics.entries, cache.statistics.bytes) == (0, 0)
    assert cache.get("a") is None


def test_a_fresh_model_trains(whole: Qwen3Model) -> None:
    model = build_model(whole.config.to_dict())
    model(
        input_ids=torch.randint(0, 383, (2, 32)), use_cache=False
    ).last_hidden_state.square().mean().backward()
    assert len(model.layers) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "'llama' is not supported"),
        ({"num_hidden_layers": 1}, "1 is too few"),
        (
            {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention",
        ),
        ({"num_hidden_layers": 2, "attention_bias": True}, "attention_bias True is not supported: False is"),
        ({"num_hidden_layers": 2, "hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: 'silu' is"),
    ],
)
def test_unsupported_configs_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config({"model_type": "qwen3"} | config)
