"""Read safetensors, single or sharded, and put them into a module built on the meta device."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from twinshot_engine.checkpoint import read_json, tell
from twinshot_engine.config import Placement
from twinshot_engine.errors import CheckpointError

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_weights(
    module: nn.Module,
    folder: Path,
    placement: Placement,
    *,
    keep: Callable[[str], bool] = lambda _: True,
    rename: Callable[[str], str] = lambda name: name,
) -> None:
    """Fill a module from a part's folder, without allocating its parameters twice.

    Args:
        module: built on the meta device; its parameters are replaced and frozen.
        folder: holds ``diffusion_pytorch_model`` or ``model``, as ``.safetensors`` or shards with an index.
        placement: device and type of the loaded parameters.
        keep: which stored names to read; the others never leave the disk.
        rename: from a stored name to the module's.

    Raises:
        CheckpointError: a file or a parameter is missing, damaged, misshapen or unknown.
    """
    weights = {
        # On the CPU a tensor is a view of the file: unaligned, and at the mercy of whoever changes the file.
        rename(name): tensor.to(placement.dtype, copy=placement.device.type == "cpu")
        for path in weight_files(folder)
        for name, tensor in _read(path, keep, placement.device)
    }
    _check(module.state_dict(), weights, folder)
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(requires_grad=False)
    module.eval()


def weight_names(folder: Path) -> set[str]:
    """List the stored parameters of a part without reading them.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return {name for path in weight_files(folder) for name in _names(path)}


def weight_files(folder: Path) -> list[Path]:
    """Find the safetensors files of a part.

    Raises:
        CheckpointError: there are none, or the index is unusable.
    """
    for stem in _STEMS:
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return _shards(index)
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"'{folder}' holds only pickled weights ({pickled[0]}), which are never loaded: use safetensors."
        )
    raise CheckpointError(f"'{folder / _STEMS[0]}.safetensors' is missing.")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"'{index}' has no weight_map.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"'{index}' names {name!r}, which is not a safetensors file beside it.")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"'{index.parent / name}' is missing, though '{index.name}' names it.")
    return [index.parent / name for name in names]


def _open(path: Path, device: str) -> Any:
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is truncated or not a safetensors file: {tell(error)}.") from error


def _names(path: Path) -> Iterable[str]:
    with _open(path, "cpu") as file:
        return list(file.keys())


def _read(path: Path, keep: Callable[[str], bool], device: torch.device) -> Iterable[tuple[str, Tensor]]:
    with _open(path, str(device)) as file:
        for name in filter(keep, file.keys()):
            try:
                tensor = file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"'{path}' is damaged at {name!r}: {tell(error)}.") from error
            if not tensor.is_floating_point():
                raise CheckpointError(f"'{path}' stores {name!r} as {tensor.dtype}, not as floating point.")
            yield name, tensor


def _check(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"'{folder}' lacks {_list(missing)}.")
    if unknown := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"'{folder}' has unknown parameters: {_list(unknown)}.")
    for name, parameter in expected.items():
        if parameter.shape != found[name].shape:
            raise CheckpointError(
                f"'{folder}' stores {name!r} as {list(found[name].shape)}, "
                f"where its config says {list(parameter.shape)}."
            )


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in islice(names, 3))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
