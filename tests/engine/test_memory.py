"""What a model will need is told before anything is allocated."""

from pathlib import Path

import pytest
import torch

from twinshot_engine.checkpoint import CheckpointError
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import NotEnoughMemoryError
from twinshot_engine.families import plan
from twinshot_engine.memory import compare, kl_decoder_bytes, stream_bytes, weight_bytes, workspace_bytes
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.precision import Projection

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def workspace(size: tuple[int, int] = (1024, 1024), batch: int = 1, cache: int = 0) -> int:
    """Of Z-Image at its published size, with 512 prompt tokens."""
    pixels = size[0] * size[1]
    config = EngineConfig(batch_sizes=(1, batch), text_cache_bytes=cache)
    return workspace_bytes(
        stream_bytes(pixels // 256 + 512, 3840, 10240), kl_decoder_bytes(pixels, (128, 256, 512, 512)), config
    )


def test_weights_are_counted_with_their_scales() -> None:
    with torch.device("meta"):
        plain, quantized = Projection(32, 64).to(torch.bfloat16), Projection(32, 64)
    quantized.quantize()
    assert weight_bytes([plain], CPU) == 2 * 32 * 64
    assert weight_bytes([plain, quantized], CPU) == 2 * 32 * 64 + 32 * 64 + 4 * 64
    assert weight_bytes([plain, quantized], CUDA) == weight_bytes([plain, quantized], CPU)


def test_a_table_of_words_takes_nothing_of_a_gpu(tiny: Path) -> None:
    checkpoint, config = find_checkpoint(str(tiny)), EngineConfig(str(tiny))
    on_cpu, on_gpu = (
        plan(checkpoint, config, Placement(device, "bf16")).weight_bytes for device in (CPU, CUDA)
    )
    sizes = checkpoint.read_json("text_encoder", "config.json")
    table = 2 * sizes["vocab_size"] * sizes["hidden_size"]
    assert on_gpu == on_cpu | {"text encoder": on_cpu["text encoder"] - table}


def test_workspace_grows_with_the_largest_size_batch_and_cache() -> None:
    small = workspace()
    assert 1e9 < small < 4e9
    assert workspace(size=(512, 512)) < small < workspace(size=(1536, 1024))
    assert workspace(batch=2) == 2 * small
    assert workspace(cache=10**9) == small + 10**9


def test_what_fits_passes() -> None:
    compare(10 * 10**9, 2 * 10**9, 12 * 10**9, "GPU", Placement(CUDA, "bf16"))


@pytest.mark.parametrize(
    ("placement", "remedies"),
    [
        (Placement(CUDA, "bf16"), "precision 'fp8', the text encoder in fp8, fewer or smaller sizes"),
        (Placement(CUDA, "fp8"), "the text encoder in fp8, fewer or smaller sizes"),
        (Placement(CUDA, "fp8", text_fp8=True), ": fewer or smaller sizes, smaller batch sizes need less"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(placement: Placement, remedies: str) -> None:
    message = f"GPU has 12.0 GB free, .* in {placement.precision} needs about 22.1 GB .*{remedies}"
    with pytest.raises(NotEnoughMemoryError, match=message) as caught:
        compare(20 * 10**9, 2_100_000_000, 12 * 10**9, "GPU", placement)
    assert isinstance(caught.value, CheckpointError)
