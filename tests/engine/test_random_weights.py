"""Checkpoints of published sizes without files: the shapes are right, and the same code loads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel

from twinshot_engine import random_weights as module
from twinshot_engine.benchmark.compare import compare
from twinshot_engine.benchmark.latency import PARTS, Job, make_prompt, measure_latency, photograph
from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families import find_family
from twinshot_engine.random_weights import PUBLISHED, RandomCheckpoint, draw, find_random
from twinshot_engine.types import GenerateRequest

TINY: dict[str, dict[str, Any]] = {
    "model_index.json": {"_class_name": "ZImagePipeline"},
    "text_encoder": dict(PUBLISHED["z-image"]["text_encoder"])
    | {
        "vocab_size": 4096,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "transformer": {
        "in_channels": 4,
        "dim": 64,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 32,
        "axes_dims": [8, 12, 12],
        "axes_lens": [1536, 64, 64],
    },
    "vae": dict(PUBLISHED["z-image"]["vae"])
    | {"block_out_channels": [32, 32], "layers_per_block": 1, "latent_channels": 4},
}
JOB = Job(256, 256, tokens=64, samples=2, warm=0)


@pytest.fixture
def tiny_random(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "PUBLISHED", {"tiny": TINY})
    return "random:tiny"


def load(reference: str) -> Engine:
    return Engine.load(EngineConfig(reference, device="cpu", sizes=((256, 256),), steps=(1, 2)))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"There is no 'random:sd3', but .*random:z-image"):
        find_random("random:sd3")


def test_published_shapes_are_those_of_diffusers_and_transformers() -> None:
    checkpoint = find_random("random:z-image")
    transformer = checkpoint.part("transformer")
    with torch.device("meta"):
        theirs = ZImageTransformer2DModel(axes_lens=[1536, 512, 512])
        config = checkpoint.read_json("vae")
        blocks = {
            f"{way}_block_types": [kind] * 4
            for way, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D"))
        }
        vae = AutoencoderKL(**config, **blocks)
    shapes = {
        name: header.shape for name, header in transformer.headers.items() if "t_embedder_2" not in name
    }
    assert shapes == {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    decoder = {name: tuple(p.shape) for name, p in vae.named_parameters() if name.startswith("decoder.")}
    assert {name: header.shape for name, header in checkpoint.part("vae").headers.items()} == decoder
    text = checkpoint.part("text_encoder").headers
    assert text["layers.34.mlp.down_proj.weight"].shape == (2560, 9728)
    assert "layers.35.mlp.down_proj.weight" not in text


def test_weights_depend_on_the_name_alone() -> None:
    cpu = torch.device("cpu")
    first, again = draw("layers.0.weight", (64, 32), cpu), draw("layers.0.weight", (64, 32), cpu)
    assert torch.equal(first, again)
    assert not torch.equal(first, draw("layers.1.weight", (64, 32), cpu))
    assert float(first.float().std()) == pytest.approx(32**-0.5, rel=0.1)


def test_it_draws(tiny_random: str) -> None:
    engine = load(tiny_random)
    assert (engine.info.name, engine.info.max_prompt_tokens) == ("random:tiny", 512)
    engine.warm()
    image = engine.generate([GenerateRequest("a red car", seed=1)]).images[0]
    assert image.std() > 1


def test_a_missing_file_is_named() -> None:
    checkpoint = RandomCheckpoint(BUILTIN_FOLDER, "random:tiny", configs=TINY)
    assert not checkpoint.has("twinshot.json")
    with pytest.raises(CheckpointError, match=r"'random:tiny' has no twinshot\.json"):
        checkpoint.read_json("twinshot.json")


@pytest.mark.parametrize("tokens", [40, 64, 128])
def test_prompts_have_the_length_asked_for_and_differ(tiny_random: str, tokens: int) -> None:
    engine = load(tiny_random)
    prompts = [make_prompt(engine.model.tokenizer, tokens, number) for number in range(300)]
    assert len(set(prompts)) == 300
    counts = {len(engine.model.tokenizer.encode(prompt)) for prompt in prompts}
    assert max(counts) <= tokens
    assert min(counts) > tokens - 8


def test_latency_has_a_row_for_each_part(tiny_random: str) -> None:
    engine, seen = load(tiny_random), list[str]()
    rows = measure_latency(engine, JOB, lambda image: image.tobytes(), seen.append)
    assert [row["part"] for row in rows] == seen == list(PARTS)
    wanted = {"benchmark", "system", "gpu", "family", "precision", "width", "height", "batch", "steps"}
    wanted |= {"median_ms", "samples", "versions", "commit", "date"}
    assert all(wanted <= row.keys() and row["median_ms"] > 0 for row in rows)
    statistics = engine.cache_statistics
    assert (statistics.hits, statistics.misses) == (0, JOB.samples + JOB.warm)


def test_stock_diffusers_draws_the_same_from_the_same_weights(tiny_random: str) -> None:
    config = EngineConfig(tiny_random, device="cpu", sizes=((256, 256),), steps=(1,))
    systems = compare(
        find_random(tiny_random), [config], JOB, lambda image: b"", lambda _: None, compiled=False
    )
    rows = [row for rows in systems for row in rows]
    by_part = {(row["system"], row["part"]): row for row in rows}
    assert by_part["twinshot", "denoise"]["denoise_error"] < 1e-5
    assert by_part["twinshot", "decode"]["decode_levels"] < 0.02
    assert 0 < by_part["diffusers", "denoise"]["denoise_error"] < 0.1  # in bf16
    assert {part for system, part in by_part if system == "diffusers"} == {
        "text",
        "denoise",
        "decode",
        "total",
    }


def test_the_stand_in_for_a_photograph_is_a_picture() -> None:
    picture = photograph(64, 48)
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
    assert np.array_equal(picture, photograph(64, 48))
    along, across = np.abs(np.diff(picture.astype(int), axis=1)).mean(), picture.std()
    assert along < across / 4  # neighbours are alike


def test_the_builtin_tokenizer_is_there() -> None:
    assert (Path(BUILTIN_FOLDER) / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("model", "part", "key", "value", "said"),
    [
        ("sana-0.6b", "transformer", "qk_norm", 3, "3 is not a text or null"),
        ("sd3.5-medium", "transformer", "dual_attention_layers", None, "null is not a list, each a whole"),
        ("qwen-image", "vae", "base_dim", "96", '"96" is not a whole number'),
        ("sana-0.6b", "vae", "decoder_block_out_channels", 8, "8 is not a list, each a whole"),
    ],
)
def test_wrong_types_in_configs_are_told(model: str, part: str, key: str, value: object, said: str) -> None:
    build = find_family(find_random(f"random:{model}")).open_forms[part]
    with pytest.raises(ValueError) as caught, torch.device("meta"):  # noqa: PT011
        build({**PUBLISHED[model][part], key: value})
    assert f"{key.removeprefix('decoder_')} {said}" in str(caught.value)
