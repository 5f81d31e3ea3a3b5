"""Configs of every family: a value of the wrong type is told by its key, and what is accepted."""

from typing import Any

import pytest

from twinshot_engine.random_weights import PUBLISHED
from twinshot_engine.transformer import SingleStreamConfig
from twinshot_engine.transformer.dual_stream_config import DualStreamConfig
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.linear_attention_config import LinearAttentionConfig
from twinshot_engine.vae import KLConfig
from twinshot_engine.vae.deep_compression_config import DeepCompressionConfig
from twinshot_engine.vae.qwen_image_config import QwenImageVAEConfig

CASES = [
    (SingleStreamConfig, "z-image", "transformer", "n_layers", True, "true is not a whole number from 0"),
    (LinearAttentionConfig, "sana-0.6b", "transformer", "num_layers", "3x", '"3x" is not a whole number'),
    (LinearAttentionConfig, "sana-0.6b", "transformer", "qk_norm", 3, "3 is not a text or null"),
    (DualStreamConfig, "qwen-image", "transformer", "num_layers", None, "null is not a whole number"),
    (JointConfig, "sd3.5-medium", "transformer", "dual_attention_layers", None, "null is not a list, each"),
    (KLConfig, "z-image", "vae", "block_out_channels", 8, "8 is not a list, each a whole number"),
    (KLConfig, "z-image", "vae", "scaling_factor", "1", '"1" is not a number'),
    (QwenImageVAEConfig, "qwen-image", "vae", "base_dim", "96", '"96" is not a whole number'),
    (DeepCompressionConfig, "sana-0.6b", "vae", "decoder_block_out_channels", 8, "8 is not a list, each"),
    (
        DeepCompressionConfig,
        "sana-0.6b",
        "vae",
        "decoder_qkv_multiscales",
        [5],
        "[5] is not a list, each a list",
    ),
]


@pytest.mark.parametrize(("kind", "model", "part", "key", "value", "said"), CASES)
def test_wrong_types_are_told_by_their_key(
    kind: Any, model: str, part: str, key: str, value: object, said: str
) -> None:
    published = PUBLISHED[model][part]
    kind.from_dict(published)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        kind.from_dict({**published, key: value})
    assert f"{key.removeprefix('decoder_')} {said}" in str(caught.value)
