"""The losses that [Training] loss names: of training, validation and the choice of the best epoch alike.

A new one is one more line in `LOSSES`.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

HUBER_DELTA = 0.05  # in scaled units, where the flow has a range of 2; larger errors count linearly

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mae": F.l1_loss,
    "huber": partial(F.huber_loss, delta=HUBER_DELTA),
    "mse": F.mse_loss,
}


def loss_values(name: str, forecast: Tensor, target: Tensor, observed: Tensor | None) -> Tensor:
    """Return the loss of each scaled value, (..., B, N, P); 0 where the target is not observed.

    Args:
        name: [Training] loss.
        forecast: (..., B, N, P), one forecast of the batch or several.
        target: (B, N, P), finite.
        observed: (B, N, P), or None where all are.
    """
    values = LOSSES[name](forecast, target.expand_as(forecast), reduction="none")
    return values if observed is None else values.where(observed, 0)


def mean_loss(name: str, forecast: Tensor, target: Tensor, observed: Tensor | None) -> Tensor:
    """Return the mean loss over the observed targets, and over all forecasts of them; 0 where there are none."""
    if observed is None and len(target):
        return LOSSES[name](forecast, target.expand_as(forecast))
    total = loss_values(name, forecast, target, observed).sum()
    return total if observed is None else total / observed.expand_as(forecast).sum().clamp_min(1)
