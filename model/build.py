"""Which variants there are, and the one way to a network: from plain arguments, or from what a checkpoint kept."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from model.dtg_lknet import DTGLKNet
from model.enhanced import DeviationPerceptron, EnhancedDTGLKNet
from model.released import ReleasedDTGLKNet
from model.stid import STID

VARIANTS: dict[str, type[nn.Module]] = {  # the paper's model, its code's, ours, ours without the encoder, the opponent
    "described": DTGLKNet,
    "released": ReleasedDTGLKNet,
    "enhanced": EnhancedDTGLKNet,
    "perceptron": DeviationPerceptron,
    "stid": STID,
}


def build_model(
    similarity_mask: Tensor, topology_mask: Tensor, laplacian_encoding: Tensor, *, variant: str, **sizes: Any
) -> nn.Module:
    """Build a variant of the network on its graphs; `sizes` are the keyword arguments of its class."""
    return VARIANTS[variant](similarity_mask, topology_mask, laplacian_encoding, **sizes)


def restore_model(arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Build the network whose keyword arguments and state dict a checkpoint kept; the graphs are among the weights."""
    graphs = (weights[name] for name in ("similarity_mask", "topology_mask", "laplacian_encoding"))
    model = build_model(*graphs, **arguments)
    model.load_state_dict(weights)
    return model
