"""A model's weights over several GPUs (FSDP2), and gathered again; blocks that are recomputed or compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from twinshot_distill.families.base import OpenModel
from twinshot_distill.processes import Processes


def place(model: OpenModel, processes: Processes, device: torch.device) -> None:
    """Move a model to its device, or a part of each of its tensors where several processes share it.

    Sharding moves one block after another, and leaves its part there: the whole need not fit on a device.
    """
    if processes.count == 1:
        model.to(device)
        return
    mesh = init_device_mesh(device.type, (processes.count,))
    # DTensor's caches keep the mesh, and it would keep the group: it finds it by name as well.
    vars(mesh).get("_pg_registry", {}).clear()
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for part in model.shards():
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # By default the outermost part stays gathered after a pass, and a teacher would not see its average move.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def recompute_blocks(model: OpenModel) -> None:
    """Keep only what enters a block, and compute the block again for its gradient."""
    for block in model.blocks():
        _recompute(block)


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = run


def compile_blocks(model: OpenModel) -> None:
    """Compile each block: one compilation serves all of a kind."""
    for block in model.blocks():
        block.compile()


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """A whole tensor on the CPU in bf16; all processes must ask for it.

    Always a copy: what was gathered may be a view of a padded buffer, which safetensors refuses to save.
    """
    holder: Any = tensor
    whole: Tensor = holder.full_tensor() if hasattr(holder, "full_tensor") else tensor
    return whole.detach().to("cpu", torch.bfloat16, copy=True).contiguous()
