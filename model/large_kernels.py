"""Large-kernel blocks: depthwise convolutions over tokens whose kernels reach further than the input is long.

The axes are (B, N, M, C) at every border, as everywhere. In memory the blocks keep the channel first, (C, M, B N), for
there each of their steps is one matrix product: a permuted view at each border costs nothing between two blocks.
"""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.fused import scaled_add

SMALL_KERNEL = 3


class DepthwiseConvolution(nn.Module):
    """One kernel a channel; only its parameters live here, `LargeKernelBlock` applies them."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"a centred kernel has an odd number of taps, found {kernel_size}")
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw taps and bias uniformly from +-1/sqrt(kernel size), as PyTorch does for its convolutions."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def taps(self, tokens: int) -> Tensor:
        """Return the taps that can touch data on that many tokens, cut or zero-padded: (C, 2 tokens - 1)."""
        margin = tokens - 1 - self.weight.shape[1] // 2
        return F.pad(self.weight, (margin, margin))


class LargeKernelBlock(nn.Module):
    """A large and a small depthwise convolution in parallel, then a pointwise feed-forward, both in scaled residuals.

        y = large(x) + small(x)
        x = BatchNorm(x + a1 GELU(y))
        x = BatchNorm(x + a2 FFN(x)),   FFN = Linear(C, 4C), GELU, Linear(4C, C)

    The two branches are one linear map: on M tokens, for each channel, the M x M Toeplitz matrix of their summed taps.
    This is how they are computed; depthwise convolutions at the nominal kernel sizes give the same output. `merge`
    replaces both branches by one kernel for inference, with the same output (RepLKNet, arXiv 2203.06717, section 3).

    Args:
        channels: C.
        kernel_size: nominal taps of the large branch.
        large_branch, small_branch: which of the two there are; at least one.
        scale: a1 and a2 at the start.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        large_branch: bool = True,
        small_branch: bool = True,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.large = DepthwiseConvolution(channels, kernel_size) if large_branch else None
        self.small = DepthwiseConvolution(channels, SMALL_KERNEL) if small_branch else None
        self.convolution_scale = nn.Parameter(torch.tensor(scale))  # a1
        self.convolution_norm = nn.BatchNorm1d(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = nn.Linear(4 * channels, channels)
        self.feed_forward_scale = nn.Parameter(torch.tensor(scale))  # a2
        self.feed_forward_norm = nn.BatchNorm1d(channels)

    @property
    def branches(self) -> list[DepthwiseConvolution]:
        """The branches there are."""
        return [branch for branch in (self.large, self.small) if branch is not None]

    def taps(self, tokens: int) -> Tensor:
        """Return the summed taps of all branches that can touch data on that many tokens, (C, 2 tokens - 1)."""
        return reduce(torch.add, [branch.taps(tokens) for branch in self.branches])

    def bias(self) -> Tensor:
        """Return the summed biases of all branches, (C,)."""
        biases: list[Tensor] = [branch.bias for branch in self.branches]
        return reduce(torch.add, biases)

    def merged_taps(self) -> Tensor:
        """Return the taps (C, K) of the one kernel that both branches are together, K being the longer one's."""
        kernel_size = max(branch.weight.shape[1] for branch in self.branches)
        reach = kernel_size // 2 + 1  # a kernel of K taps is all of the 2 reach - 1 taps of `reach` tokens
        return self.taps(reach)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold both branches into one, kept as the large one. The forward pass gives the same output from then on."""
        taps = self.merged_taps()
        merged = DepthwiseConvolution(*taps.shape).to(taps)
        merged.weight.copy_(taps)
        merged.bias.copy_(self.bias())
        self.large, self.small = merged, None

    def token_mixing(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return the map over tokens of all branches: matrices (C, M, M), output token first, and biases (C,)."""
        # Row i of the Toeplitz matrix reads tap j - i at column j: a window that slides backwards as i grows.
        return self.taps(tokens).unfold(1, tokens, 1).flip(1), self.bias()

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C)."""
        B, N, M, C = x.shape
        x = x.permute(3, 2, 0, 1).reshape(C, M, B * N).contiguous()
        mixing, bias = self.token_mixing(M)
        y = torch.baddbmm(bias[:, None, None], mixing, x)
        x = scaled_add(x, y, self.convolution_scale, gelu=True).view(1, C, M * B * N)
        x = self.convolution_norm(x)[0]  # (C, M B N)
        hidden = F.gelu(torch.addmm(self.expand.bias[:, None], self.expand.weight, x))  # (4C, M B N)
        y = torch.addmm(self.contract.bias[:, None], self.contract.weight, hidden)  # (C, M B N)
        x = self.feed_forward_norm(scaled_add(x, y, self.feed_forward_scale).unsqueeze(0))
        return x.view(C, M, B, N).permute(2, 3, 1, 0)  # (B, N, M, C)
