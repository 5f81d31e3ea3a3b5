"""Transformers stored alone, as ComfyUI and GGUF converters repack them, completed by a base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.tensor_files import opened, read_headers
from twinshot_engine.types import GenerateRequest

REQUEST = GenerateRequest("a red apple", seed=3, steps=2)
STORED = "transformer/diffusion_pytorch_model.safetensors"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights(tiny: Path) -> Weights:
    return load_file(tiny / STORED)


COMFY_NAMES = {
    "all_x_embedder.2-1.": "x_embedder.",
    "all_final_layer.2-1.": "final_layer.",
    ".to_out.0.": ".out.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
}


def comfy_name(name: str) -> str:
    for ours, theirs in COMFY_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def as_comfy(weights: Weights) -> Weights:
    """The names and the fused projection of the original release."""
    renamed = {comfy_name(name): tensor for name, tensor in weights.items()}
    for name in [name for name in renamed if name.endswith("to_q.weight")]:
        parts = [renamed.pop(name.replace("to_q", f"to_{part}")) for part in "qkv"]
        renamed[name.replace("to_q", "qkv")] = torch.cat(parts)
    return renamed | {"norm_final.weight": torch.ones(64)}


def one_axis(weights: Weights) -> Weights:
    return {name: w.squeeze(0) if name.endswith("pad_token") else w for name, w in weights.items()}


FORMS: dict[str, Callable[[Weights], Weights]] = {
    "diffusers": dict,
    "prefixed": lambda w: {f"model.diffusion_model.{name}": tensor for name, tensor in w.items()},
    "comfy": lambda w: {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in as_comfy(w).items()},
        "vae.encoder.conv_in.weight": torch.ones(3),  # as in files that hold everything
    },
    "comfy, no prefix": as_comfy,
    "pad tokens of one axis": lambda w: one_axis(as_comfy(w)),
}


def load(reference: Path | str, base: Path | str | None) -> Engine:
    return Engine.load(EngineConfig(str(reference), base=base and str(base), device="cpu"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_transformer(
    weights: Weights, tiny: Path, tmp_path: Path, engine: Engine, form: str
) -> None:
    path = tmp_path / "z-image-turbo.safetensors"
    save_file({name: w.contiguous() for name, w in FORMS[form](weights).items()}, path)
    loaded = load(path, tiny)
    assert torch.equal(loaded.latents([REQUEST]), engine.latents([REQUEST]))
    assert (loaded.info.name, loaded.info.family) == ("z-image-turbo", "ZImagePipeline")


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [
        ("layers.0.attention.qkv.weight", (194, 64), r"to_v.*qkv.* as \[66, 64\], .* \[64, 64\]"),
        ("layers.0.attention.qkv.weight", (64, 64), r"to_q.*qkv.* as \[21, 64\], .* \[64, 64\]"),
        ("layers.0.attention.qkv.weight", (), r"to_q.*qkv.* as \[\], .* \[64, 64\]"),
        ("x_pad_token", (7, 64), r"x_pad_token' as \[7, 64\], .* \[1, 64\]"),
    ],
)
def test_a_misshapen_tensor_is_named(
    weights: Weights, tiny: Path, tmp_path: Path, key: str, shape: tuple[int, ...], said: str
) -> None:
    save_file(as_comfy(weights) | {key: torch.zeros(shape)}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=f"file.safetensors' stores .*{said}"):
        load(tmp_path / "file.safetensors", tiny)


def test_a_folder_of_shards_is_a_transformer_too(tiny: Path, tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "repacked"
    shutil.copytree(tiny / "transformer", folder)
    assert torch.equal(load(folder, tiny).latents([REQUEST]), engine.latents([REQUEST]))


def test_missing_parts_come_from_the_base(tiny: Path, tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / "most"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("vae", "tokenizer"))
    with pytest.raises(CheckpointError, match=r"vae/config.json' is missing"):
        load(folder, None)
    assert torch.equal(load(folder, tiny).latents([REQUEST]), engine.latents([REQUEST]))


def test_own_parts_are_preferred_to_the_bases(tiny_copy: Path, tiny: Path, engine: Engine) -> None:
    path = tiny_copy / STORED
    stored = load_file(path)
    save_file(stored | {"all_final_layer.2-1.linear.bias": torch.ones(32)}, path)
    assert not torch.equal(load(tiny_copy, tiny).latents([REQUEST]), engine.latents([REQUEST]))
    assert torch.equal(load(tiny, tiny_copy).latents([REQUEST]), engine.latents([REQUEST]))


def test_a_folder_of_one_file_is_that_file(tiny: Path, tmp_path: Path) -> None:
    own = shutil.copy(tiny / STORED, tmp_path / "twinflow.safetensors")
    assert find_checkpoint(str(tmp_path), str(tiny)).part("transformer").folder == own


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "but nothing: name"),
        (["a.safetensors", "b.gguf"], "but 'a.safetensors', 'b.gguf': name"),
        (["model_index.json"], "has no part's folder, so all would be the base's"),
    ],
)
def test_folders_without_a_part_are_refused(files: list[str], said: str, tiny: Path, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint(str(tmp_path), str(tiny))


def test_without_a_base_the_remedy_is_named(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny / STORED, tmp_path / "alone.safetensors"))
    said = (
        r"alone.safetensors' holds a transformer alone: name a base \(--base\) that 'text_encoder' comes "
        "from, such as 'Tongyi-MAI/Z-Image-Turbo'"
    )
    with pytest.raises(CheckpointError, match=said):
        load(path, None)


def test_a_base_of_another_family_is_refused(tiny: Path, tiny_copy: Path, tmp_path: Path) -> None:
    (tiny_copy / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    path = Path(shutil.copy(tiny / STORED, tmp_path / "alone.safetensors"))
    for reference in (path, tiny):
        with pytest.raises(CheckpointError, match=r"is of ZImagePipeline, but the base .* of FluxPipeline"):
            load(reference, tiny_copy)


def test_a_transformer_of_no_known_family_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(6, 2)}, path)
    said = "flux.safetensors' holds no transformer that is known, but 'double_blocks.0.img_attn.qkv.weight'"
    with pytest.raises(CheckpointError, match=said):
        load(path, tiny)


def test_pickles_are_refused_by_their_name(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"does not end in .safetensors or .gguf: nothing else is read"):
        load(path, tiny)


def test_a_folder_above_the_only_checkpoint_stands_for_it(tiny: Path, tmp_path: Path) -> None:
    inner = tmp_path / "TwinFlow-v1.0" / "TwinFlow"
    inner.mkdir(parents=True)
    shutil.copy(tiny / "model_index.json", inner)
    found = find_checkpoint(str(tmp_path))
    assert (found.folder, found.reference) == (inner, f"{tmp_path}/TwinFlow-v1.0/TwinFlow")
    (tmp_path / "other").mkdir()
    shutil.copy(tiny / "model_index.json", tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"holds several checkpoints: name one of '.*v1.0/TwinFlow', '.*/other'"
    ):
        find_checkpoint(str(tmp_path))


def write_gguf(path: Path, weights: Weights, kind: str, architecture: str = "qwen") -> None:
    """As converters do: matrices quantised where blocks of 32 fit, the rest in fp32."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        fits = values.ndim == 2 and values.shape[1] % 32 == 0
        chosen = gguf.GGMLQuantizationType[kind if fits else "F32"]
        writer.add_tensor(name, gguf.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def eight_bits(tensor: Tensor) -> Tensor:
    """Q8_0: blocks of 32 share an fp16 scale, the largest magnitude over 127."""
    if tensor.dim() != 2 or tensor.shape[1] % 32:
        return tensor
    blocks = tensor.double().unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(scale > 0, blocks / scale, 0).round()
    return (whole * scale.half().double()).flatten(-2).float()


EXPECTED: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": eight_bits,
    "BF16": lambda w: w.bfloat16().float() if w.dim() == 2 and w.shape[1] % 32 == 0 else w,
    "F16": lambda w: w.half().float() if w.dim() == 2 and w.shape[1] % 32 == 0 else w,
    "F32": lambda w: w,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_gguf_files_are_dequantised_on_arrival(
    weights: Weights, tiny: Path, tiny_copy: Path, tmp_path: Path, kind: str
) -> None:
    write_gguf(tmp_path / "file.gguf", one_axis(as_comfy(weights)), kind)
    rounded = {name: EXPECTED[kind](w).contiguous() for name, w in weights.items()}
    for name in ("x_pad_token", "cap_pad_token"):
        rounded[name] = weights[name]
    save_file(rounded, tiny_copy / STORED)
    result, expected = (
        e.latents([REQUEST]) for e in (load(tmp_path / "file.gguf", tiny), load(tiny_copy, None))
    )
    # A value halfway between two levels may be rounded either way.
    assert (result - expected).abs().max() / expected.abs().max() < (1e-3 if kind == "Q8_0" else 1e-6)


def test_six_bits_are_read(tmp_path: Path) -> None:
    """Q6_K: 256 values of 6 bits, 16 int8 scales of 16 values each, and one fp16 scale for all."""
    rng = np.random.default_rng(5)
    low, high = rng.integers(0, 256, (3, 128), np.uint8), rng.integers(0, 256, (3, 64), np.uint8)
    scales = rng.integers(-128, 128, (3, 16), np.int8)
    shared = np.array([[0.01], [0.5], [1.0]], np.float16)
    data = np.concatenate([low, high, scales.view(np.uint8), shared.view(np.uint8)], axis=1)
    writer = gguf.GGUFWriter(tmp_path / "file.gguf", "x")
    writer.add_tensor("w", data, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    expected = np.empty((3, 256))
    for row in range(3):
        for place in range(256):
            half, within = divmod(place, 128)
            quarter, column = divmod(within, 32)
            nibble = low[row, half * 64 + within % 64] >> (4 * (quarter // 2)) & 15
            top = high[row, half * 32 + column] >> (2 * quarter) & 3
            level = int(nibble) + 16 * int(top) - 32
            expected[row, place] = level * float(scales[row, place // 16]) * float(shared[row, 0])
    (header,) = read_headers(tmp_path / "file.gguf")
    assert (header.key, header.shape, header.kind) == ("w", (3, 256), "Q6_K")
    with opened(tmp_path / "file.gguf", torch.device("cpu")) as read:
        np.testing.assert_allclose(read(header).numpy(), expected, rtol=1e-6)
        second = read(header._replace(rows=slice(1, 2), shape=(1, 256)))
        np.testing.assert_allclose(second.numpy(), expected[1:2], rtol=1e-6)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.95])
def test_truncated_gguf_files_are_refused(weights: Weights, tiny: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "file.gguf"
    write_gguf(path, weights, "Q8_0")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(
        CheckpointError, match=r"file.gguf' is truncated or not a GGUF file: .*; fetch it again"
    ):
        load(path, tiny)


def test_a_tensor_in_two_shards_is_refused(tiny_copy: Path) -> None:
    whole = tiny_copy / STORED
    shutil.copy(whole, whole.with_name("b.safetensors"))
    names = list(load_file(whole))
    half = len(names) // 2
    index = {name: whole.name if i < half else "b.safetensors" for i, name in enumerate(names)}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match=r"diffusion_.*' and 'b.safetensors' both store"):
        load(tiny_copy, None)


def test_a_shard_without_what_its_index_says_is_named(tiny_copy: Path) -> None:
    whole = tiny_copy / STORED
    index = dict.fromkeys([*load_file(whole), "layers.7.attention.to_q.weight"], whole.name)
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": index}))
    said = r"safetensors' lacks 'layers.7.attention.to_q.weight', though .* says that it is there: fetch"
    with pytest.raises(CheckpointError, match=said):
        load(tiny_copy, None)
