"""Fresh weights for training a single-stream transformer from scratch.

The adaLN-Zero recipe (Peebles and Xie, arXiv 2212.09748): every gate and the output start at zero, so
each time-dependent block is the identity and the model predicts zero. The second time embedder starts
as a copy of the first, as TwinFlow does when it adapts a pretrained model.
"""

from torch import Tensor, nn

EMBEDDER_STD = 0.02


def set_initial_weights(model: nn.Module) -> None:
    """Overwrite all parameters of a ``SingleStreamTransformer`` in place, from the global generator."""
    for name, parameter in model.named_parameters():
        _initialise(name, parameter)
    second = getattr(model, "t_embedder_2", None)
    if isinstance(second, nn.Module):
        second.load_state_dict(model.get_submodule("t_embedder").state_dict())


def _initialise(name: str, parameter: Tensor) -> None:
    if "adaLN_modulation" in name or "all_final_layer" in name or name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif "norm" in name or name == "cap_embedder.0.weight":
        nn.init.ones_(parameter)
    elif "t_embedder" in name or "pad_token" in name:
        nn.init.normal_(parameter, std=EMBEDDER_STD)
    else:
        nn.init.xavier_uniform_(parameter)
