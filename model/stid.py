"""STID: a small MLP that knows sensor and time, the strong baseline that a large network has to beat."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from lib.ini import CountOrZero
from lib.interface import Graphs, Inputs, Needs, Sizes, Variant
from model.embeddings import TableEmbedding
from model.mlp import ResidualMLPBlock


@dataclass(frozen=True, kw_only=True)
class STIDSettings:
    """The settings of STID."""

    history_steps: Annotated[CountOrZero, "how many of the last input steps are read; 0: points_per_hour"] = 0

    def faults(self, sizes: Sizes) -> dict[str, str]:
        """Return what is wrong with these settings, by key."""
        if self.history_steps <= sizes.input_steps:
            return {}
        expected = f"expected 0 (points_per_hour) or at most the {sizes.input_steps} input steps"
        return {"history_steps": f"found {self.history_steps}, {expected}"}


class STID(nn.Module):
    """Each sensor's last steps beside embeddings of sensor, time of day and day of the week, through residual MLPs.

    After Shao et al., "Spatial-temporal identity" (CIKM 2022, arXiv 2208.05233): no sensor sees another. The two
    embeddings of time are one sum here, of the width of both.

    Args:
        graphs: only the number of sensors counts.
        sizes: of which `channels` is the width of the embedding of the history, and the MLPs have four times that.
        settings: of STID.
    """

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: STIDSettings) -> None:
        super().__init__()
        channels = sizes.channels
        self.history_steps = settings.history_steps or sizes.steps_per_hour
        self.history = nn.Linear(self.history_steps, channels)
        self.identity = TableEmbedding(len(graphs.topology), sizes.steps_per_day, 3 * channels)
        self.blocks = nn.Sequential(*(ResidualMLPBlock(4 * channels, sizes.dropout) for _ in range(sizes.layers)))
        self.prediction = nn.Linear(4 * channels, sizes.horizon)

    def forward(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P) from the last steps of the series (B, N, L) and the time of the week (B,)."""
        history = self.history(inputs.series[:, :, -self.history_steps :])  # (B, N, C)
        identity = self.identity(inputs.step_of_week)  # (B, N, 3C)
        return self.prediction(self.blocks(torch.cat([history, identity], dim=-1)))


STID_VARIANT = Variant(
    name="stid",
    label="STID",
    network=STID,
    settings=STIDSettings,
    faults=STIDSettings.faults,
    needs=lambda _: Needs(calendar=True),
    sees_other_sensors=False,
)
