"""SANA's folders mean the same to this engine and to stock diffusers, at one step and at several.

With TwinFlow's second time embedder, which diffusers does not know, the reference is diffusers' network with
an embedder written here, inside a sampler written from the published description.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
)
from diffusers.models.normalization import AdaLayerNormSingle
from safetensors.torch import load_file, save_file
from tiny_sana import SPRINT, TRANSFORMER, VAE, make_tokenizer, write
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model

from twinshot_engine import random_weights
from twinshot_engine.benchmark.compare import compare
from twinshot_engine.benchmark.latency import Job
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.random_weights import PUBLISHED
from twinshot_engine.text.instruction import INSTRUCTION, instructed
from twinshot_engine.types import GenerateRequest
from twinshot_engine.vae import deep_compression_blocks

PROMPTS = ["a photo of a Red apple ", "two blue vases, " * 13]
SIDE, SEED = 256, 11
MULTI = 16


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sana"), TRANSFORMER, sprint=False)


@pytest.fixture(scope="module")
def sprint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sprint"), SPRINT, sprint=True)


@pytest.fixture(scope="module")
def twin(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with TwinFlow's second embedder."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("twin") / "copy"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = load_file(weights)
    second = {
        name.replace("time_embed.", "time_embed_2."): w for name, w in stored.items() if "time_embed." in name
    }
    stored |= {name: w + 0.1 * torch.randn_like(w) for name, w in second.items()}
    save_file(stored, weights, metadata={"format": "pt"})
    return folder


def load(folder: Path) -> Engine:
    return Engine.load(EngineConfig(str(folder), device="cpu", steps=(1, 2, 3, 4, MULTI)))


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected.detach()).abs().max() / expected.detach().abs().max())


def stock(folder: Path) -> SanaPipeline:
    kind = (
        SanaSprintPipeline
        if "Sprint" in json.loads((folder / "model_index.json").read_text())["_class_name"]
        else SanaPipeline
    )
    pipeline = kind.from_pretrained(folder, dtype=torch.float32)
    pipeline.text_encoder.set_attn_implementation("eager")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class SecondTime(nn.Module):
    """Stands in for the network's time embedder: TwinFlow's pair of them."""

    def __init__(self, folder: Path, first: AdaLayerNormSingle) -> None:
        super().__init__()
        self.first, self.second, self.target = first, AdaLayerNormSingle(first.linear.in_features), None
        stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        prefix = "time_embed_2."
        self.second.load_state_dict(
            {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        )

    def forward(self, timestep: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        first, second = self.first(timestep, **options), self.second(torch.tensor([self.target]), **options)
        share = (timestep - self.target) / 1000
        return first[0] + share * second[0], first[1] + share * second[1]


def flow_reference(pipeline: SanaPipeline, schedule: list[tuple[float, float]], ratio: float) -> Tensor:
    """TwinFlow's sampler around diffusers' network."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    x = torch.randn((1, 4, SIDE // 4, SIDE // 4), generator=generator)
    embeds, mask, _, _ = pipeline.encode_prompt(
        PROMPTS[0], do_classifier_free_guidance=False, complex_human_instruction=list(INSTRUCTION)
    )
    data = x
    for place, (t, target) in enumerate(schedule):
        seen = t if target == t else t - target / 2  # what has one time was trained with, by LoRAs
        if isinstance(pipeline.transformer.time_embed, SecondTime):
            pipeline.transformer.time_embed.target, seen = target * 1000, t
        with torch.no_grad():
            velocity = pipeline.transformer(
                x, embeds, torch.tensor([seen * 1000]), encoder_attention_mask=mask, return_dict=False
            )[0]
        data, noise = x - t * velocity, x + (1 - t) * velocity
        after = schedule[place + 1][0] if place + 1 < len(schedule) else 0.0
        if after:
            fresh = torch.randn(x.shape, generator=generator) if ratio else torch.zeros_like(x)
            x = (1 - after) * data + after * (math.sqrt(1 - ratio) * noise + math.sqrt(ratio) * fresh)
    return data


FEW = {
    1: [(1.0, 0.0)],
    2: [(1.0, 0.0), (0.6, 0.0)],
    4: [(1.0, 0.0), (5 / 6, 0.0), (2 / 3, 0.0), (0.5, 0.0)],
}
ANY = {3: [(1.0, 0.75), (0.75, 0.5), (0.5, 0.0)]}


@pytest.mark.parametrize("kind", ["plain", "twin"])
def test_steps_are_those_of_the_published_sampler(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    pipeline, engine = stock(request.getfixturevalue("plain")), load(folder)
    if kind == "twin":
        pipeline.transformer.time_embed = SecondTime(folder, pipeline.transformer.time_embed)
    for steps, schedule in (FEW | ANY).items():
        expected = flow_reference(pipeline, schedule, ratio=1.0 if steps in FEW else 0.0)
        actual = engine.latents([GenerateRequest(PROMPTS[0], SEED, SIDE, SIDE, steps)])
        assert far(actual, expected) < 1e-4, steps


def test_the_second_embedder_has_a_say(plain: Path, twin: Path) -> None:
    request = [GenerateRequest(PROMPTS[0], SEED, SIDE, SIDE, 1)]
    assert far(load(twin).latents(request), load(plain).latents(request)) > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "long"])
def test_sprint_is_served_as_by_its_pipeline(sprint: Path, steps: int, prompt: str) -> None:
    pipeline, engine = stock(sprint), load(sprint)
    drawn = {}
    for output in ("latent", "pil"):
        drawn[output] = pipeline(
            prompt,
            num_inference_steps=steps,
            intermediate_timesteps=1.3 if steps == 2 else None,
            width=SIDE,
            height=SIDE,
            generator=torch.Generator("cpu").manual_seed(SEED),
            use_resolution_binning=False,
            output_type=output,
        ).images
    request = [GenerateRequest(prompt, SEED, SIDE, SIDE, steps)]
    assert far(engine.latents(request), drawn["latent"]) < 1e-4
    difference = engine.generate(request).images[0].astype(int) - np.asarray(drawn["pil"][0]).astype(int)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def test_a_batch_of_different_lengths_draws_what_each_prompt_draws_alone(sprint: Path) -> None:
    engine = load(sprint)
    requests = [
        GenerateRequest(prompt, seed, SIDE, SIDE, 2) for seed, prompt in enumerate(("a vase", PROMPTS[0]))
    ]
    alone = torch.cat([engine.latents([request]) for request in requests])
    assert far(engine.latents(requests), alone) < 1e-5


def test_a_prompt_may_be_as_long_as_the_pipeline_reads(plain: Path) -> None:
    tokenizer = instructed(make_tokenizer())
    engine = load(plain)
    assert len(tokenizer.encode("a" * 299)) == tokenizer.max_tokens
    engine.validate(GenerateRequest("a" * 299, SEED, SIDE, SIDE, 1))
    with pytest.raises(InvalidRequestError, match=f"more than the limit of {tokenizer.max_tokens}"):
        engine.validate(GenerateRequest("a" * 300, SEED, SIDE, SIDE, 1))


def test_states_are_those_that_the_pipeline_selects(plain: Path) -> None:
    pipeline, engine = stock(plain), load(plain)
    for prompt in (*PROMPTS, "a" * 299):
        expected, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, complex_human_instruction=list(INSTRUCTION)
        )
        tokens = engine.model.tokenizer.pad(engine.model.tokenizer.encode(prompt))
        model = engine.model
        with torch.inference_mode():
            states = torch.cat((model.text.first_state, model.text(tokens.ids)[:, model.dropped :]), 1)
            length = model.encode(*tokens)[1]
        assert int(length) == int(mask.sum())
        assert far(states[:, : int(length)], expected[:, : int(length)]) < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("most", [1, 800, 5000, 13_000, 10**9])
def test_cuts_through_pictures_leave_no_trace(
    plain: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep_compression_blocks, "STRIP_BYTES", most)
    latents, decoder = torch.randn(3, VAE["latent_channels"], 7, 5), load(plain).model.decoder
    expected = AutoencoderDC.from_pretrained(plain / "vae").decode(latents / VAE["scaling_factor"]).sample
    assert far(decoder(latents), expected) < 1e-5


@pytest.mark.parametrize("most", [1, 2 * 5 * 8, 100, 7 * 5 * 8, 2 * 7 * 5 * 8, 10**9])
def test_strips_cover_every_row_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_compression_blocks, "STRIP_BYTES", most)
    x = torch.zeros(3, 7, 5, 4, dtype=torch.int16)
    for some, first, last in deep_compression_blocks.strips(x.shape, x.element_size()):
        strip = x[some, first:last]
        strip += 1
        assert strip.is_contiguous()
        assert strip.nbytes <= max(3 * most, 5 * 8)
    assert x.eq(1).all()


def change_config(folder: Path, part: str, **values: object) -> Path:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("transformer", {"patch_size": 2}, "patch_size 2 is not supported: 1 is"),
        ("transformer", {"interpolation_scale": 1}, "interpolation_scale 1 is not supported"),
        ("transformer", {"qk_norm": "layer_norm"}, "qk_norm 'layer_norm' is not supported"),
        ("transformer", {"guidance_embeds": True}, "guidance_embeds True is not that of a SanaPipeline"),
        ("transformer", {"num_layers": 4}, "lacks 'transformer_blocks.3"),
        ("transformer", {"caption_channels": 36}, "caption_projection.linear_1.weight"),
        ("vae", {"decoder_norm_types": "batch_norm"}, "decoder_norm_types 'batch_norm' is not supported"),
        ("vae", {"upsample_block_type": "conv"}, "upsample_block_type 'conv' is not supported"),
        ("vae", {"decoder_layers_per_block": [1, 1, 1]}, "has unknown parameters"),
        ("text_encoder", {"model_type": "gemma3"}, "model_type 'gemma3' is not supported: 'gemma2' is"),
        ("text_encoder", {"attn_logit_softcapping": None}, "attn_logit_softcapping None is not above 0"),
        ("text_encoder", {"vocab_size": 380}, "embed_tokens.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    plain: Path, tmp_path: Path, part: str, values: dict[str, object], said: str
) -> None:
    folder = change_config(Path(shutil.copytree(plain, tmp_path / "copy")), part, **values)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert said in str(caught.value)


def test_a_tokenizer_that_ends_texts_is_refused() -> None:
    tokenizer = make_tokenizer()
    ending = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    with pytest.raises(CheckpointError, match="cannot be SANA's"):
        instructed(tokenizer)


def shrink(name: str) -> dict[str, dict[str, object]]:
    """The configs of a published size, made small."""
    configs = {part: dict(config) for part, config in PUBLISHED[name].items()}
    configs["text_encoder"] |= {
        "vocab_size": 4096,
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    configs["transformer"] |= {**TRANSFORMER, "num_layers": 2}
    configs["vae"] |= {key: value for key, value in VAE.items() if not key.startswith("encoder")}
    return configs


@pytest.mark.parametrize("name", ["sana-1.6b", "sana-sprint-0.6b"])
def test_random_weights_are_drawn_as_stock_diffusers_draws(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_weights, "PUBLISHED", {"tiny": shrink(name)})
    checkpoint = random_weights.find_random("random:tiny")
    config = EngineConfig("random:tiny", device="cpu", sizes=((SIDE, SIDE),), steps=(1,))
    job = Job(SIDE, SIDE, tokens=64, samples=1, warm=0)
    ours, stock_rows = compare(checkpoint, [config], job, lambda _image: b"", lambda _: None, compiled=False)
    errors = {row["part"]: row for row in ours}
    assert errors["denoise"]["denoise_error"] < 1e-4
    assert errors["decode"]["decode_levels"] < 0.01
    assert {row["part"] for row in stock_rows} == {"text", "denoise", "decode", "total"}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("sana")])
def test_published_shapes_are_those_of_diffusers_and_transformers(name: str) -> None:
    checkpoint = random_weights.find_random(f"random:{name}")
    with torch.device("meta"):
        modules = {
            "transformer": SanaTransformer2DModel(**checkpoint.read_json("transformer")),
            "vae": AutoencoderDC(**checkpoint.read_json("vae")),
            "text_encoder": Gemma2Model(Gemma2Config(**checkpoint.read_json("text_encoder"))),
        }
    for part, module in modules.items():
        theirs = {
            key: tuple(p.shape) for key, p in module.named_parameters() if not key.startswith("encoder.")
        }
        assert {key: header.shape for key, header in checkpoint.part(part).headers.items()} == theirs


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["twin", "sprint"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_gpu_draws_what_the_cpu_draws(kind: str, steps: int, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(kind))
    requests = [GenerateRequest(prompt, SEED, SIDE, SIDE, steps) for prompt in PROMPTS]
    expected = Engine.load(EngineConfig(folder, "cpu")).latents(requests)
    for precision, backend, allowed in (
        ("fp32", "fused", 1e-4),
        ("bf16", "fused", 0.1),
        ("bf16", "eager", 0.1),
    ):
        config = EngineConfig(
            folder, "cuda", precision, backend=backend, sizes=((SIDE, SIDE),), batch_sizes=(1, 2)
        )
        engine = Engine.load(config)
        engine.warm()
        assert far(engine.latents(requests).cpu(), expected) < allowed, (precision, backend)
        assert engine.generate(requests).images.shape == (2, SIDE, SIDE, 3)
