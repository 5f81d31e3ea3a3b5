"""The text encoder against the whole Qwen3 it is cut from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Model

from twinshot_engine.engine import Engine
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.text import TextEncoder
from twinshot_engine.text.qwen3 import build_model, is_used


@pytest.fixture
def encoder(engine: Engine) -> TextEncoder:
    return engine._model.text  # the seam under test is the encoder itself


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Qwen3Model:
    return Qwen3Model.from_pretrained(tiny / "text_encoder").eval()


@torch.no_grad()
def test_equals_the_hidden_states_before_the_last(encoder: TextEncoder, whole: Qwen3Model) -> None:
    tokens = torch.randint(0, 383, (3, 64))
    mask = torch.arange(64) < torch.tensor([[64], [20], [1]])
    expected = whole(tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder(tokens)[mask], expected[mask], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_bucket_does_not_change_real_tokens(encoder: TextEncoder) -> None:
    alone = encoder.encode(["a red apple"])
    beside = encoder.encode(["a red apple", "two blue vases " * 15])
    count = int(alone.lengths[0])
    assert beside.embeddings.shape[1] > alone.embeddings.shape[1] == 32
    assert beside.lengths[0] == count
    torch.testing.assert_close(
        beside.embeddings[0, :count], alone.embeddings[0, :count], rtol=1e-5, atol=1e-5
    )


def test_prompts_are_wrapped_in_the_chat_template(encoder: TextEncoder, tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    text = tokenizer.decode(encoder.tokenize("a red apple"))
    assert text == "<|im_start|>user\na red apple<|im_end|>\n<|im_start|>assistant\n"


def test_too_many_tokens_are_counted(encoder: TextEncoder) -> None:
    with pytest.raises(InvalidRequestError, match=r"The prompt has \d{3,} tokens .* the limit of 192\."):
        encoder.tokenize("vase " * 200)


def test_only_used_layers_are_read(whole: Qwen3Model) -> None:
    config = whole.config.to_dict()
    unused = {name for name in whole.state_dict() if not is_used(name, config)}
    assert unused == {name for name in whole.state_dict() if name.startswith(("layers.2.", "norm."))}
    assert not is_used("lm_head.weight", config)
    assert not is_used("model.layers.2.mlp.up_proj.weight", config)
    assert is_used("model.embed_tokens.weight", config)


def test_a_fresh_model_trains(whole: Qwen3Model) -> None:
    model = build_model(whole.config.to_dict())
    model(
        input_ids=torch.randint(0, 383, (2, 32)), use_cache=False
    ).last_hidden_state.square().mean().backward()
    assert len(model.layers) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "llama"}, "'llama' is not supported"), ({"num_hidden_layers": 1}, "1 is too few")],
)
def test_unsupported_configs_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model({"model_type": "qwen3"} | config)
