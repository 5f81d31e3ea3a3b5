"""Stock pipelines by the pipeline class that a checkpoint names."""

from collections.abc import Mapping

import torch

from twinshot_engine.benchmark.stock.pipeline import StockPipeline, import_diffusers
from twinshot_engine.benchmark.stock.qwen_image import StockQwenImage
from twinshot_engine.benchmark.stock.sana import StockSana, StockSanaSprint
from twinshot_engine.benchmark.stock.stable_diffusion_3 import StockStableDiffusion3
from twinshot_engine.benchmark.stock.z_image import StockZImage
from twinshot_engine.random_weights import RandomCheckpoint

__all__ = ["StockPipeline", "find_stock", "import_diffusers"]

_STOCK: Mapping[str, type[StockPipeline]] = {
    "QwenImagePipeline": StockQwenImage,
    "SanaPipeline": StockSana,
    "SanaSprintPipeline": StockSanaSprint,
    "StableDiffusion3Pipeline": StockStableDiffusion3,
    "ZImagePipeline": StockZImage,
}


def find_stock(checkpoint: RandomCheckpoint, device: torch.device, dtype: torch.dtype) -> StockPipeline:
    """Choose the stock pipeline of a checkpoint of published size."""
    return _STOCK[checkpoint.family](checkpoint, device, dtype)
