"""Scaled dot-product attention, in the form that is fastest for the number of keys."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.dropout import drop

FEW_KEYS = 128


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value, as `torch.nn.functional.scaled_dot_product_attention` does.

    With few keys there are thousands of tiny problems, and the fused kernel spends its time on beginning them: batched
    products were measured 2 to 5 times faster on CPU.

    Args:
        query: (..., queries, d).
        key, value: (..., keys, d).
        mask: (..., queries, keys), true where a query may look, or numbers to add to the scores; None allows all.
        dropout: rate on the attention weights.
    """
    # Not all fused kernels take a batch of nothing, and on a CPU there is none that drops weights.
    fused = query.numel() > 0 and (dropout == 0 or query.device.type != "cpu")
    if key.shape[-2] > FEW_KEYS and fused:
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:  # its way back was measured 8 times slower
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask, dropout)
            return y.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return drop(scores.softmax(-1), dropout) @ value
