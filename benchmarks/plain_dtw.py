"""Dynamic time warping as the textbook has it: one cell of the cost table after the other."""

import math
from collections.abc import Sequence


def dtw_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the DTW distance of two series: D(i, j) = |a_i - b_j| + min(D(i-1, j), D(i, j-1), D(i-1, j-1))."""
    table = [[math.inf] * (len(second) + 1) for _ in range(len(first) + 1)]
    table[0][0] = 0.0
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            table[i][j] = abs(a - b) + min(table[i - 1][j], table[i][j - 1], table[i - 1][j - 1])
    return table[-1][-1]
