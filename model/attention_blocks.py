"""Attention under a sparse mask, exact and at a fraction of the cost: blocks of sensors that share their neighbours.

Of PEMS04's 307 sensors each may look at about 12. Dense attention computes all 307 x 307 scores and throws most away.
Here sensors are grouped into small blocks, so that those of a block look at much the same sensors; each block then
attends to the union of its neighbours only, under its own part of the mask. The cost grows with N, not with its square.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from lib.interface import Neighbours
from model.scaled_dot_product import scaled_dot_product

BLOCK_SIZES = (8, 16, 32)
OVERHEAD = 8  # gathering a key for a block costs about as much as this many scores
WORTH = 0.6  # blocks are used when they cost less than this share of dense attention
MOST_LISTED = 64  # neighbours of a sensor on average, up to which a GPU goes through lists of them


class AttentionBlocks(nn.Module):
    """A mask cut into blocks: G blocks of S sensors, each with the U sensors that any of them may look at.

    Where the mask is too dense for blocks to pay, it stays whole. The attention is the same either way.

    Args:
        neighbours: the sensors that each may look at, at least one.
    """

    allowed: Tensor
    queries: Tensor
    keys: Tensor
    block_mask: Tensor
    places: Tensor
    starts: Tensor
    others: Tensor
    seeing_starts: Tensor
    seeing: Tensor

    def __init__(self, neighbours: Neighbours) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.is_listed = len(neighbours.sensors) <= MOST_LISTED * len(neighbours)
        if self.is_listed:
            seen_by = Neighbours.of(csr_array(neighbours.matrix().T))
            names = ("starts", "others", "seeing_starts", "seeing")
            lists = (neighbours.starts, neighbours.sensors, seen_by.starts, seen_by.sensors)
            for name, tensor in zip(names, lists, strict=True):
                self._keep(name, tensor)
        partitions = {size: partition(neighbours, size) for size in BLOCK_SIZES}
        cost = {
            size: len(blocks) * _width(blocks) * (size + OVERHEAD) for size, blocks in partitions.items()
        }  # scores, and what gathering costs
        size = min(cost, key=lambda size: cost[size])
        self.is_cut = cost[size] < WORTH * len(neighbours) ** 2
        if not self.is_cut:
            self._keep("allowed", neighbours.dense())
            return
        blocks, width = partitions[size], _width(partitions[size])
        queries = np.zeros((len(blocks), size), dtype=np.int64)
        keys = np.zeros((len(blocks), width), dtype=np.int64)
        # Numbers to add, for that is one pass over the scores in training where a mask of booleans takes two.
        block_mask = np.full((len(blocks), size, width), -np.inf, dtype=np.float32)
        places = np.zeros(len(neighbours), dtype=np.int64)
        column = np.zeros(len(neighbours), dtype=np.int64)
        for number, (members, union) in enumerate(blocks):
            # A block that is not full repeats its first sensor, and what it does not look at is masked.
            queries[number] = members[0]
            queries[number, : len(members)] = members
            keys[number, : len(union)] = union
            column[union] = np.arange(len(union))
            for row, sensor in enumerate(queries[number]):
                block_mask[number, row, column[neighbours.of_sensor(sensor)]] = 0
            places[members] = number * size + np.arange(len(members))
        for name, array in (("queries", queries.ravel()), ("keys", keys.ravel()), ("places", places)):
            self._keep(name, torch.from_numpy(array))
        self._keep("block_mask", torch.from_numpy(block_mask))  # (G, S, U)

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The neighbours of each sensor, and of whom each is one: starts (N + 1,) and sensors (E,); None: too many."""
        return (self.starts, self.others, self.seeing_starts, self.seeing) if self.is_listed else None

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Keep what moves with the module to a device and is no part of its weights: it follows from the mask."""
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Let sensors attend to sensors under the mask, with dropout on the weights: all of (B, heads, N, d)."""
        if not self.is_cut:
            return scaled_dot_product(query, key, value, self.allowed, dropout)
        B, heads = query.shape[:2]
        G, S, U = self.block_mask.shape
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (B heads, N, d)
        query = query.index_select(1, self.queries).unflatten(1, (G, S))  # (B heads, G, S, d)
        key, value = (x.index_select(1, self.keys).unflatten(1, (G, U)) for x in (key, value))  # (B heads, G, U, d)
        mask = self.block_mask.unsqueeze(0)  # fused kernels take masks of two or four axes
        y = scaled_dot_product(query, key, value, mask, dropout)  # (B heads, G, S, d)
        y = y.flatten(1, 2).unflatten(0, (B, heads)).transpose(1, 2)  # (B, G S, heads, d)
        # In this order the heads of a sensor lie side by side afterwards, as whoever merges them wants them.
        return y.index_select(1, self.places).transpose(1, 2)  # (B, heads, N, d)


Block = tuple[NDArray[np.int64], NDArray[np.int64]]  # its sensors, and all that any of them may look at


def _width(blocks: list[Block]) -> int:
    """Return how many keys a block has room for: those of the widest, in eights as GPU kernels want them."""
    return -(-max(len(neighbours) for _, neighbours in blocks) // 8) * 8


def partition(allowed: Neighbours, size: int) -> list[Block]:
    """Group sensors into blocks of that size (the last may be smaller), each grown by what widens it least.

    A block starts at the sensor with the fewest neighbours that are not in a block yet, at the rim of what is left.
    """
    seeing = Neighbours.of(csr_array(allowed.matrix().T))
    neighbours, seen_by = ([graph.of_sensor(sensor) for sensor in range(len(allowed))] for graph in (allowed, seeing))
    left = np.ones(len(allowed), dtype=np.bool_)
    degree = allowed.counts.numpy()
    left_neighbours = degree.copy()
    never = len(allowed) + 1  # more than any count
    blocks = []
    while left.any():
        union = np.zeros(len(allowed), dtype=np.bool_)
        widening = degree.copy()  # how many keys a sensor would add to the block
        widening[~left] = 2 * never  # of which no key takes it away
        sensor = int(np.where(left, left_neighbours, never).argmin())
        members = []
        while True:
            members.append(sensor)
            left[sensor] = False
            widening[sensor] = 2 * never
            left_neighbours[seen_by[sensor]] -= 1
            for key in neighbours[sensor][~union[neighbours[sensor]]]:
                widening[seen_by[key]] -= 1
            union[neighbours[sensor]] = True
            if len(members) == size or not left.any():
                break
            sensor = int(widening.argmin())
        blocks.append((np.array(members), np.flatnonzero(union)))
    return blocks
