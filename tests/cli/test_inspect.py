"""`twinshot inspect`: what a checkpoint needs and lacks, told without reading a weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch
from tiny_sd3 import write_checkpoint as write_sd3
from typer.testing import CliRunner

from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_engine.weights import StoredPart
from twinshot_server import inspection
from twinshot_server.cli import app

PARTS = ("text_encoder", "tokenizer", "transformer", "vae")


@pytest.fixture(autouse=True)
def _no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredPart, "read", refuse)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The built-in checkpoint, to be damaged."""
    return Path(shutil.copytree(BUILTIN_FOLDER, tmp_path / "copy"))


def inspect(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["inspect", "--device", "cpu", *arguments, "--json"])
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def stored(part: str) -> dict[str, int]:
    """Elements of each tensor of the built-in checkpoint, by safetensors alone."""
    (file,) = (BUILTIN_FOLDER / part).glob("*.safetensors")
    sizes = {}
    with safe_open(file, framework="numpy") as opened:
        for name in opened.keys():  # noqa: SIM118 - no mapping
            shape = opened.get_slice(name).get_shape()
            sizes[name] = 1
            for side in shape:
                sizes[name] *= side
    return sizes


def test_the_miniature_is_whole() -> None:
    found = inspect()
    assert (found["reference"], found["family"], found["few_steps"]) == ("builtin", "ZImagePipeline", True)
    assert (found["steps"], found["sizes"], found["problems"]) == ([1, 2, 4], "256x256", [])
    parts = {part["name"]: part for part in found["parts"]}
    assert tuple(parts) == PARTS
    for name in ("text_encoder", "transformer", "vae"):
        elements = sum(stored(name).values())
        assert (parts[name]["parameters"], parts[name]["formats"]) == (elements, ["BF16"])
        assert (parts[name]["bytes"], parts[name]["files"]) == (2 * elements, 1)


def test_memory_is_told_for_every_precision() -> None:
    needs = {need["precision"]: need for need in inspect()["needs"]}
    assert list(needs) == ["fp32", "bf16", "fp8"]
    assert [name for name, need in needs.items() if need["chosen"]] == ["fp32"]
    assert needs["fp32"]["weight_bytes"] > needs["bf16"]["weight_bytes"] > needs["fp8"]["weight_bytes"]
    # Time's own layers become a small table, and the decoder stays fp32 until it is folded.
    loaded = sum(stored("text_encoder").values()) + sum(stored("transformer").values())
    assert needs["fp32"]["weight_bytes"] < 4 * (loaded + sum(stored("vae").values()))
    assert needs["fp8"]["problem"].startswith("fp8 needs a GPU")
    assert needs["fp32"]["problem"] is None


def test_a_published_size_needs_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "free_bytes", lambda _device: None)
    found = inspect("random:z-image", "--precision", "bf16", "--sizes", "512x512")
    parts = {part["name"]: part["parameters"] for part in found["parts"]}
    assert parts["transformer"] == pytest.approx(6.15e9, rel=0.01)
    (need,) = (need for need in found["needs"] if need["chosen"])
    larger = inspect("random:z-image", "--precision", "bf16", "--sizes", "1024x1024")
    assert need["workspace_bytes"] < larger["needs"][1]["workspace_bytes"]


def test_everything_that_is_missing_is_told_at_once(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    found = inspect(str(copy), code=1)
    said = "\n".join(found["problems"])
    assert f"'{copy / 'tokenizer'}' is missing: name a base (--base) that has this part." in said
    missing = copy / "vae" / "diffusion_pytorch_model.safetensors"
    assert f"'{missing}' is missing: fetch it again, or remove '{copy / 'vae'}' and name a base" in said
    assert f"'{weights}' is truncated or not a safetensors file" in said
    assert len(found["problems"]) == 3
    assert {part["name"] for part in found["parts"] if part["problem"]} == {"tokenizer", "vae", "transformer"}
    assert found["needs"] == []


def test_parts_that_do_not_fit_their_config_are_told(copy: Path) -> None:
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_layers": 99}))
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_torch(load_file(vae) | {"surprise": torch.ones(1)}, vae)
    first, second = inspect(str(copy), code=1)["problems"]
    assert "lacks 'layers." in first
    assert f"'{vae}' has unknown parameters: 'surprise'" in second


def test_a_transformer_alone_tells_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "turbo.safetensors"
    shutil.copy(BUILTIN_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors", path)
    found = inspect(str(path), code=1)
    assert (found["family"], found["folder"]) == ("ZImagePipeline", str(path))
    parts = {part["name"]: part for part in found["parts"]}
    assert parts["transformer"]["parameters"] == sum(stored("transformer").values())
    for part in ("text_encoder", "tokenizer", "vae"):
        assert f"name a base (--base) that {part!r} comes from" in parts[part]["problem"]
    whole = inspect(str(path), "--base", str(BUILTIN_FOLDER))
    assert (whole["problems"], whole["needs"]) == ([], inspect()["needs"])
    theirs = {part["name"] for part in whole["parts"] if part["from_base"]}
    assert theirs == {"text_encoder", "tokenizer", "vae"}


def test_adapters_are_held_against_the_transformer(tmp_path: Path) -> None:
    rows = columns = 320
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    for path, width in ((good, columns), (bad, columns + 1)):
        down, up = np.ones((8, width), np.float32), np.ones((rows, 8), np.float32)
        module = "transformer.layers.0.attention.to_q"
        save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, path)
    found = inspect("--adapter", f"style={good}:0.5", "--adapter", f"other={bad}", code=1)
    assert [adapter["name"] for adapter in found["adapters"]] == ["style", "other"]
    assert (found["adapters"][0]["rank"], found["adapters"][0]["weights"]) == (8, 1)
    (problem,) = found["problems"]
    assert f"'{bad}' has an update of [320, 321]" in problem
    text = CliRunner().invoke(app, ["inspect", "--adapter", str(good)]).stdout
    assert any(line.split()[:3] == ["(merged)", "8", "1"] for line in text.splitlines())


def test_an_unknown_family_is_told(copy: Path) -> None:
    (copy / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    found = inspect(str(copy), code=1)
    assert found["family"] == "FluxPipeline"
    assert "'FluxPipeline', which is not supported; supported: " in found["problems"][0]


def test_without_an_index_the_rest_is_still_looked_at(copy: Path) -> None:
    (copy / "model_index.json").unlink()
    found = inspect(str(copy), code=1)
    (problem,) = found["problems"]
    assert problem.startswith(f"'{copy / 'model_index.json'}' is missing: name a folder in diffusers' layout")
    assert found["family"] == "unknown"
    assert [part["name"] for part in found["parts"]] == list(PARTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "There is no folder or file 'nowhere'"),
        (
            ["org/not-cached"],
            "(HF_HUB_OFFLINE): fetch it with 'twinshot generate' or 'twinshot serve' and that variable unset",
        ),
        (["--precision", "fp8", "--device", "cpu"], "fp8 needs a GPU"),
        (["--device", "tpu"], "device 'tpu' is not"),
        (["--sizes", "big"], "sizes"),
    ],
)
def test_what_cannot_be_inspected_is_told_in_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    result = run("inspect", *arguments, HF_HOME=str(tmp_path / "hub"))
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_people_read_tables(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr(inspection, "free_bytes", lambda _device: 340_000_000)
    text = CliRunner().invoke(app, ["inspect", "--device", "cpu"]).stdout
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["transformer"][1:3] == ["16.5", "M"]
    assert (rows["fp32"][1], rows["fp32"][-3:]) == ("(chosen)", ["does", "not", "fit"])
    (problem,) = inspect(code=1)["problems"]
    assert "MB needed in fp32, 340.0 MB free on CPU: choose" in problem
    assert text.rstrip().endswith(f"Problem: {problem}")
    assert rows["bf16"][-1] == "fit" or rows["bf16"][-1] == "fits"
    assert rows["fp8"][-3:] == ["not", "possible", "here"]
    assert "CPU, 340.0 MB free" in text
    monkeypatch.setattr(inspection, "free_bytes", lambda _device: None)
    text = CliRunner().invoke(app, ["inspect", "--device", "cpu"]).stdout
    assert text.rstrip().endswith("Nothing is missing.")
    shutil.rmtree(copy / "tokenizer")
    damaged = CliRunner().invoke(app, ["inspect", str(copy)]).stdout
    assert "cannot be read" in damaged
    assert f"Problem: '{copy / 'tokenizer'}' is missing" in damaged.splitlines()[-1]


def test_a_checkpoint_without_a_second_embedder_may_still_draw_in_few_steps(copy: Path) -> None:
    """As one whose distillation was a LoRA that somebody merged: its weights do not tell."""
    told = CliRunner().invoke(app, ["inspect", str(copy)]).stdout
    assert "(the checkpoint was distilled for few)" in told
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if "t_embedder_2" not in name}
    save_torch(weights, path)
    told = CliRunner().invoke(app, ["inspect", str(copy)]).stdout
    assert "(its weights do not tell whether it was distilled for few: unless it or an adapter was" in told


def test_every_encoder_and_tokenizer_is_a_part(tmp_path: Path) -> None:
    write_sd3(tmp_path / "sd3")
    found = inspect(str(tmp_path / "sd3"))
    assert {part["name"] for part in found["parts"]} == {
        *("text_encoder", "text_encoder_2", "text_encoder_3"),
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
        *("transformer", "vae"),
    }
    assert found["problems"] == []
