"""Closed forms for labels against groups of negatives, with no concatenation and no global seed.

For logits `z`, `P = logsumexp` over the labels and `Q_g = logsumexp` over group `g` of the
negatives, the softmax mass of the labels in group `g` is `sigmoid(P - Q_g)`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def group_order(num_negatives: int, num_groups: int, seed: int) -> Tensor:
    """Return the `[groups, size]` indices of the negatives in each group.

    The last `num_negatives mod num_groups` negatives are dropped, the others permuted once by a
    private generator; more groups than negatives become one group a negative.
    """
    num_groups = min(num_groups, num_negatives)
    kept = num_negatives - num_negatives % num_groups
    # What is cached here outlives the caller's inference mode and default device.
    with torch.inference_mode(False):
        if num_groups == 1:
            return torch.arange(kept, device="cpu").unsqueeze(0)
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randperm(kept, generator=generator, device="cpu").reshape(num_groups, -1)


def group_margin(label_logits: Tensor, negative_logits: Tensor, num_groups: int, seed: int = 0) -> Tensor:
    """Return `P - Q_g`, the log-odds of the labels against each group of negatives, `[B, groups]`."""
    order = group_order(negative_logits.shape[-1], num_groups, seed).to(negative_logits.device)
    # One group is all of them; and index_select has a quick backward, unlike indexing.
    grouped = negative_logits if len(order) == 1 else negative_logits.index_select(-1, order.flatten())
    group_mass = torch.logsumexp(grouped.unflatten(-1, order.shape), dim=-1)
    return torch.logsumexp(label_logits, dim=-1, keepdim=True) - group_mass
