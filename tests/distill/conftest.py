"""What the tests of training share: everything that can be drawn, made once."""

from __future__ import annotations

import pytest
import torch
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
