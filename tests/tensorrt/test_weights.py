"""Checkpoints whose weights lie in files or nowhere, and what tells checkpoints apart."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twinshot_engine.checkpoint import BUILTIN_FOLDER, Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import EngineFilesError
from twinshot_engine.families import Model, find_family
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.random_weights import find_random
from twinshot_engine.tensorrt.fingerprint import fingerprint
from twinshot_engine.tensorrt.redirected import mapped, unread


def load(checkpoint: Checkpoint) -> Model:
    placement = Placement(torch.device("cpu"), "bf16")
    return find_family(checkpoint).load(
        checkpoint, EngineConfig(device="cpu"), placement, lambda _stage, _done: None
    )


def test_mapped_weights_are_the_same_weights(tmp_path: Path) -> None:
    checkpoint = find_checkpoint("builtin")
    model, other = load(checkpoint), load(replace(checkpoint, redirect=mapped(tmp_path)))
    for part, expected in model.parts.items():
        found = dict(other.parts[part].named_parameters())
        assert found.keys() == dict(expected.named_parameters()).keys()
        assert all(torch.equal(found[name], value) for name, value in expected.named_parameters())
    assert {path.name for path in tmp_path.iterdir()} == {
        "text_encoder.weights",
        "transformer.weights",
        "vae.weights",
    }


def test_what_is_mapped_is_in_the_file(tmp_path: Path) -> None:
    model = load(replace(find_checkpoint("builtin"), redirect=mapped(tmp_path)))
    first = next(model.parts["transformer"].parameters())
    first.data.fill_(1.5)
    stored = torch.frombuffer(bytearray((tmp_path / "transformer.weights").read_bytes()), dtype=first.dtype)
    assert (stored == 1.5).sum() >= first.numel()


def test_unread_weights_leave_constants_and_shapes() -> None:
    checkpoint = find_checkpoint("builtin")
    model, other = load(checkpoint), load(replace(checkpoint, redirect=unread))
    assert all(parameter.is_meta for part in other.parts.values() for parameter in part.parameters())
    assert torch.equal(model.passes[2][1].modulation, other.passes[2][1].modulation)
    assert model.count_parameters() == other.count_parameters()


def test_a_folder_without_space_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFilesError, match=r"bytes for '.*missing/text_encoder\.weights' cannot be had"):
        load(replace(find_checkpoint("builtin"), redirect=mapped(tmp_path / "missing")))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILTIN_FOLDER, tmp_path / "copy"))


def test_a_copy_has_the_same_fingerprint(copy: Path) -> None:
    assert fingerprint(Checkpoint(copy, "copy")) == fingerprint(find_checkpoint("builtin"))


@pytest.mark.parametrize("file", ["transformer/config.json", "tokenizer/tokenizer.json", "twinshot.json"])
def test_a_changed_config_is_another_checkpoint(copy: Path, file: str) -> None:
    before = fingerprint(Checkpoint(copy, "copy"))
    (copy / file).write_text((copy / file).read_text() + " ")
    assert fingerprint(Checkpoint(copy, "copy")) != before


def test_weights_that_were_trained_on_are_another_checkpoint(copy: Path) -> None:
    before = fingerprint(Checkpoint(copy, "copy"))
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header:] = bytes(value ^ 1 for value in content[header:])
    path.write_bytes(content)
    assert fingerprint(Checkpoint(copy, "copy")) != before


def test_random_weights_have_a_fingerprint_of_their_name() -> None:
    checkpoint = find_random("random:z-image")
    assert fingerprint(checkpoint) == fingerprint(find_random("random:z-image"))
    assert fingerprint(checkpoint) != fingerprint(replace(checkpoint, reference="random:other"))
