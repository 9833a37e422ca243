"""Embeddings of the sensor, the time of day and the day of the week.

After Shao et al., "Spatial-temporal identity" (CIKM 2022, arXiv 2208.05233).
"""

import torch
from torch import Tensor, nn

DAYS_OF_WEEK = 7


class TableEmbedding(nn.Module):
    """An embedding for each sensor, each step of the day and each day of the week, summed.

    Args:
        sensors: N.
        steps_per_day: time steps of a day.
        channels: C.
    """

    def __init__(self, sensors: int, steps_per_day: int, channels: int) -> None:
        super().__init__()
        self.steps_per_day = steps_per_day
        self.sensor = nn.Parameter(torch.empty(sensors, channels))
        self.time_of_day = nn.Parameter(torch.empty(steps_per_day, channels))
        self.day_of_week = nn.Parameter(torch.empty(DAYS_OF_WEEK, channels))
        for embedding in self.parameters():
            nn.init.normal_(embedding, std=0.1)

    def forward(self, step_of_week: Tensor) -> Tensor:
        """Return the embeddings (B, N, C) of all sensors at a step of the week (B,)."""
        step, day = step_of_week % self.steps_per_day, step_of_week // self.steps_per_day % DAYS_OF_WEEK
        return self.sensor + (self.time_of_day[step] + self.day_of_week[day]).unsqueeze(1)


class HarmonicEmbedding(nn.Module):
    """The same, with the time of day as a linear map of its first harmonics: smoother, and learnt sooner.

    A few weeks of training show each step of a day only a few times. With too few harmonics the rush hour is blunt.

    Args:
        sensors: N.
        steps_per_day: time steps of a day.
        channels: C.
        harmonics: of the day; at most half of its steps.
    """

    waves: Tensor

    def __init__(self, sensors: int, steps_per_day: int, channels: int, harmonics: int) -> None:
        super().__init__()
        self.steps_per_day = steps_per_day
        harmonics = min(harmonics, steps_per_day // 2)
        angle = torch.arange(steps_per_day).unsqueeze(1) / steps_per_day * torch.arange(1, harmonics + 1) * 2 * torch.pi
        self.register_buffer("waves", torch.cat([angle.sin(), angle.cos()], dim=1), persistent=False)
        self.time_of_day = nn.Linear(2 * harmonics, channels)
        self.sensor = nn.Parameter(torch.empty(sensors, channels))
        self.day_of_week = nn.Parameter(torch.empty(DAYS_OF_WEEK, channels))
        # Small, so that at the start the values of the series dominate.
        nn.init.normal_(self.sensor, std=0.1)
        nn.init.normal_(self.day_of_week, std=0.1)

    def forward(self, step_of_week: Tensor) -> Tensor:
        """Return the embeddings (B, N, C) of all sensors at a step of the week (B,)."""
        time = self.time_of_day(self.waves[step_of_week % self.steps_per_day])  # (B, C)
        day = self.day_of_week[step_of_week // self.steps_per_day % DAYS_OF_WEEK]
        return self.sensor + (time + day).unsqueeze(1)
