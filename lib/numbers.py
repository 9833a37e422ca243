"""Numbers as text. Significant digits are kept: a flow near 0.003 is as good a flow as one near 300."""

import math


def decimals_for(value: float, least: int) -> int:
    """Return how many decimals show a number.

    They are `least` for 0 and from 1 on. Below 1 they are so many more that `least` + 1 significant digits are shown,
    as they are of a number from 1 to 10.
    """
    magnitude = abs(value)
    return least - math.floor(math.log10(magnitude)) if 0 < magnitude < 1 else least


def number_text(value: float, least: int = 3) -> str:
    """Return a number with at least so many decimals, and below 1 with as many as its significant digits need."""
    return f"{value:.{decimals_for(value, least)}f}"
