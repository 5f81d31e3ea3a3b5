"""What safetensors raises on a full disk ends in a sentence, and others can read its files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mean_encoders import Mean
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_checkpoint import write_tiny
from torch import nn

from twinshot_distill import exporting, tensor_files
from twinshot_distill.checkpointing import Keeper, State
from twinshot_distill.data.cache import fill_cache
from twinshot_distill.errors import TrainingError
from twinshot_distill.exporting import export_adapter, export_checkpoint
from twinshot_distill.lora import LoraSettings, add_adapters
from twinshot_distill.miniature.autoencoder import new_autoencoder
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_distill.miniature.export import export
from twinshot_distill.miniature.train import _save
from twinshot_distill.processes import Processes
from twinshot_distill.runfile import DataSettings
from twinshot_distill.tensor_files import save_tensors
from twinshot_engine.opening import find_checkpoint

WORDS = "Error while serializing: I/O error: No space left on device (os error 28)"
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from twinshot_distill.tensor_files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_tensors({"a": torch.zeros(100_000)}, Path(sys.argv[1]))
except OSError as error:
    print("told:", error)
"""


def test_a_disk_that_takes_no_more_is_an_os_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("told: "), done.stderr
    assert "File too large" in done.stdout


def fail(*_arguments: object, **_options: object) -> None:
    raise SafetensorError(WORDS)


def fill(folder: Path) -> None:
    (folder / "p.txt").write_text("a prompt\n")
    fill_cache(folder / "cache", DataSettings("prompts", folder / "p.txt"), (8, 8), "model", Mean())


def save_state(folder: Path) -> None:
    Keeper(folder / "state", {}).save(State(1, 1.0, {"a": torch.zeros(1)}, {}))


def write_checkpoint(folder: Path) -> None:
    path = folder / "base"
    base = find_checkpoint(str(path if path.exists() else write_tiny(path)))
    export_checkpoint(base, nn.Linear(2, 2), folder / "checkpoint", Processes())


def write_adapter(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    add_adapters(model, LoraSettings(rank=1), ("0",))
    export_adapter(model, folder / "adapter", Processes())


def write_miniature(folder: Path) -> None:
    export(folder / "miniature", new_autoencoder(), Denoiser())


def save_stage(folder: Path) -> None:
    _save(nn.Linear(2, 2), folder / "stage.safetensors")


WRITERS = [fill, save_state, write_checkpoint, write_adapter, write_miniature, save_stage]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "save_file", fail)
        patched.setattr(exporting, "save_torch_state_dict", fail)
        with pytest.raises(TrainingError, match=r"cannot be (written|saved).*No space left") as told:
            write(tmp_path)
    assert ("state' holds no state." in str(told.value)) == (write is save_state)
    assert not list(tmp_path.rglob("*.partial"))
    write(tmp_path)  # there is room again


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("write", [write_checkpoint, write_adapter, write_miniature])
def test_what_is_exported_can_be_read_by_whom_the_umask_allows(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)
    (out,) = (path for path in tmp_path.iterdir() if path.name != "base")
    written = [path for path in out.rglob("*.safetensors") if path.stat().st_nlink == 1]
    assert written
    assert {path.stat().st_mode & 0o777 for path in written} == {0o640}


def test_metadata_and_tensors_are_read_back(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
