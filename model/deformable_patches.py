"""Patches: deformable ones, of which each reads the input where a small network tells it to look, and regular ones."""

import torch
from torch import Tensor, nn


class DeformablePatches(nn.Module):
    """Cut a series into patches whose centre and length are predicted from the regular patch itself.

    A predictor sees the `patch_len` values of a regular patch and gives a centre shift and a half-length change, both
    in steps. The patch is then read at `patch_len` evenly spaced positions between

        centre + shift - relu((patch_len - 1) / 2 + change)   and   centre + shift + relu((patch_len - 1) / 2 + change),

    clamped to the series, by linear interpolation. With a predictor that answers zero these are the regular patches.

    Args:
        input_steps: length L of the series; a multiple of `patch_len`.
        patch_len: steps in a patch; there are M = L / patch_len patches.
        hidden: width of the predictor.
    """

    centres: Tensor

    def __init__(self, input_steps: int, patch_len: int, hidden: int = 64) -> None:
        super().__init__()
        if input_steps % patch_len:
            raise ValueError(f"patch_len {patch_len} does not divide the input of {input_steps} steps")
        self.input_steps = input_steps
        self.patch_len = patch_len
        self.predictor = nn.Sequential(nn.Linear(patch_len, hidden), nn.GELU(), nn.Linear(hidden, 2))
        centres = torch.arange(input_steps // patch_len) * patch_len + (patch_len - 1) / 2
        self.register_buffer("centres", centres, persistent=False)

    def reset_parameters(self) -> None:
        """Start as regular patches: only the last layer is zero, so that the predictor can still learn."""
        nn.init.zeros_(self.predictor[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.predictor[-1].bias)  # type: ignore[arg-type]

    def positions(self, series: Tensor) -> Tensor:
        """Return where each patch of `series` (B, N, L) is read, in steps from its start: (B, N, M, patch_len)."""
        shift, change = self.predictor(series.unflatten(-1, (-1, self.patch_len))).unbind(-1)  # each (B, N, M)
        centre = self.centres + shift
        half_length = torch.relu((self.patch_len - 1) / 2 + change)
        lower = (centre - half_length).clamp(0, self.input_steps - 1)
        upper = (centre + half_length).clamp(0, self.input_steps - 1)
        fraction = torch.linspace(0, 1, self.patch_len, device=series.device, dtype=series.dtype)
        return lower.unsqueeze(-1) + (upper - lower).unsqueeze(-1) * fraction

    def forward(self, series: Tensor) -> Tensor:
        """Read the patches of `series` (B, N, L): (B, N, M, patch_len)."""
        positions = self.positions(series)  # (B, N, M, patch_len)
        before = positions.detach().floor().nan_to_num()  # no number stays none by its weight, but is no place
        weight = positions - before
        before = before.long().flatten(2)  # (B, N, M * patch_len)
        after = (before + 1).clamp(max=self.input_steps - 1)
        left = series.gather(2, before).view_as(weight)
        right = series.gather(2, after).view_as(weight)
        return torch.lerp(left, right, weight)


class RegularPatches(nn.Module):
    """Cut a series into patches of equal length, side by side: the ablation of deformable patches."""

    def __init__(self, patch_len: int) -> None:
        super().__init__()
        self.patch_len = patch_len

    def forward(self, series: Tensor) -> Tensor:
        """Cut `series` (B, N, L) into patches: (B, N, M, patch_len)."""
        return series.unflatten(-1, (-1, self.patch_len))
