from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from twinshot_server.images import ImageFormat, encode


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """A smooth picture, wider than high, with three different channels."""
    x, y = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64))
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


def decode(data: bytes) -> tuple[str, NDArray[np.uint8]]:
    image = Image.open(io.BytesIO(data))
    return str(image.format), np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_decoder_sees_the_same_picture(image_format: ImageFormat, pixels: NDArray[np.uint8]) -> None:
    name, seen = decode(encode(pixels, image_format))
    assert name == image_format.value.upper()
    assert np.abs(seen.astype(int) - pixels).mean() < 2.5


def test_png_is_lossless(pixels: NDArray[np.uint8]) -> None:
    assert np.array_equal(decode(encode(pixels, ImageFormat.PNG))[1], pixels)


def test_any_memory_layout_will_do(pixels: NDArray[np.uint8]) -> None:
    turned = pixels.transpose(1, 0, 2)[::2]
    assert np.array_equal(decode(encode(turned, ImageFormat.PNG))[1], turned)
    assert decode(encode(turned, ImageFormat.JPEG))[1].shape == turned.shape


@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_quality_costs_bytes(image_format: ImageFormat, pixels: NDArray[np.uint8]) -> None:
    assert len(encode(pixels, image_format, quality=10)) < len(encode(pixels, image_format, quality=100))
