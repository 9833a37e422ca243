"""The residual MLP block, of which small networks are made."""

from torch import Tensor, nn

from model.dropout import Dropout


class ResidualMLPBlock(nn.Module):
    """x + Linear(Dropout(relu(Linear(x)))), of one width."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), Dropout(dropout), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return x + self.layers(x)
