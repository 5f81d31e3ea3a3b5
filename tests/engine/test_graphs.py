"""Buffers that graphs read from: shared by name and type, whatever the shape."""

import torch

from twinshot_engine.graphs import Inputs


def test_shapes_of_one_name_share_memory() -> None:
    inputs = Inputs(torch.device("cpu"))
    large, small = inputs.like("caption", (2, 30, 8)), inputs.like("caption", (1, 7, 8))
    assert (large.shape, small.shape) == ((2, 30, 8), (1, 7, 8))
    assert not large.any()
    small.fill_(3)
    assert large.flatten()[: 7 * 8].eq(3).all()
    assert not large.flatten()[7 * 8 :].any()
    assert inputs.like("caption", (2, 30, 8)).data_ptr() == large.data_ptr()


def test_a_larger_shape_leaves_those_before_it_their_memory() -> None:
    inputs = Inputs(torch.device("cpu"))
    small = inputs.like("caption", (4,)).fill_(3)
    large = inputs.like("caption", (2, 4)).fill_(5)
    assert small.tolist() == [3] * 4
    again = inputs.like("caption", (4,))
    assert again.tolist() == [5] * 4
    assert again.data_ptr() == large.data_ptr()


def test_names_and_types_share_nothing() -> None:
    inputs = Inputs(torch.device("cpu"))
    views = [
        inputs.like("caption", (4,)),
        inputs.like("latents", (4,)),
        inputs.like("caption", (4,), torch.int32),
    ]
    for value, view in enumerate(views):
        view.fill_(value)
    assert [view.tolist() for view in views] == [[0] * 4, [1] * 4, [2] * 4]
    assert views[2].dtype == torch.int32
