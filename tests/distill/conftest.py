"""What the tests of training share: everything that can be drawn, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_distill.miniature.tokenizer import build_tokenizer
from twinshot_distill.world.composer import Composer


@pytest.fixture(scope="session")
def composer() -> Composer:
    """A composer with one variation of each background."""
    return Composer("cpu", scene_variations=1, plain_variations=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """The miniature's tokenizer, trained anew."""
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def flow() -> Denoiser:
    """A fresh model predicts zero; a little noise makes every weight matter."""
    torch.manual_seed(0)
    model = Denoiser()
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six pictures with captions of six lengths."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (80, 96, 3), np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"{index} red apples" + " and a pear" * index)
    return folder
