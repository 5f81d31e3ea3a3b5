"""What the tests of training share: everything that can be drawn, made once."""

from __future__ import annotations

import pytest

from twinshot_distill.world.composer import Composer


@pytest.fixture(scope="session")
def composer() -> Composer:
    """A composer with one variation of each background."""
    return Composer("cpu", scene_variations=1, plain_variations=1)
