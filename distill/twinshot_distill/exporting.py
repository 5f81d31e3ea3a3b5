"""What a run leaves: a checkpoint in the layout of the one it started from, and for LoRA an adapter file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from twinshot_distill.errors import TrainingError
from twinshot_distill.lora import adapter_state, lora_layers
from twinshot_distill.processes import Processes
from twinshot_distill.sharding import gathered
from twinshot_distill.tensor_files import let_read, one_kind_of_error, save_tensors
from twinshot_engine.checkpoint import Checkpoint

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
_LARGEST_FILE = "5GB"


def export_checkpoint(base: Checkpoint, transformer: nn.Module, folder: Path, processes: Processes) -> None:
    """Write a checkpoint that `serve` loads: the base's files, with this transformer in bf16.

    Adapters are merged. All processes must call it; the first one writes.

    Raises:
        TrainingError: the disk does not take it.
    """
    state = plain_state(transformer)
    if not processes.first:
        return
    partial = folder.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        _link_all_but_weights(base, partial)
        with one_kind_of_error():
            save_torch_state_dict(
                state,
                partial / "transformer",
                filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
                max_shard_size=_LARGEST_FILE,
            )
        for path in (partial / "transformer").glob("*.safetensors"):
            let_read(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"'{folder}' cannot be written: {error}; the run's last state is kept, and the same command "
            "exports it again."
        ) from error


def export_adapter(transformer: nn.Module, folder: Path, processes: Processes) -> None:
    """Write the student's adapter as diffusers and PEFT read it. Raises TrainingError on a full disk."""
    state = {name: gathered(tensor) for name, tensor in adapter_state(lora_layers(transformer)).items()}
    if not processes.first:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(state, folder / ADAPTER_FILE, {"format": "pt"})
    except OSError as error:
        raise TrainingError(f"'{folder / ADAPTER_FILE}' cannot be written: {error}.") from error


def plain_state(transformer: nn.Module) -> dict[str, Tensor]:
    """The state dict in bf16 on the CPU, gathered from all processes, adapters merged into their layers."""
    layers = lora_layers(transformer)
    state = {}
    for name, tensor in transformer.state_dict().items():
        layer, _, part = name.rpartition(".base.")
        if any(f"{kind}." in name for kind in ("default_down", "default_up", "old_down", "old_up")):
            continue
        if layer in layers:
            merged = layers[layer].merged() if part == "weight" else tensor
            state[f"{layer}.{part}"] = gathered(merged)
        else:
            state[name] = gathered(tensor)
    return state


def _link_all_but_weights(base: Checkpoint, target: Path) -> None:
    """Fill a folder with the base's files but its card; weights are linked where the file system can."""
    if base.base is not None:
        _link_all_but_weights(base.base, target)
    for path in sorted(base.folder.rglob("*")):
        inside = path.relative_to(base.folder)
        weights = inside.parts[0] == "transformer" and ".safetensors" in path.name
        if path.is_dir() or weights or inside.parts[0].startswith(".") or inside.name == "README.md":
            continue
        place = target / inside
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if path.suffix == ".safetensors":
            try:
                os.link(path.resolve(), place)
                continue
            except OSError:
                pass  # another file system
        shutil.copyfile(path, place)
