"""Cosines with text features that every image moves, by matrix products only: no [B, K, D] tensor.

An image moves the text feature `c` (unit length) to `c' = L2(c + delta + scale * c + shift)`, where
`delta` belongs to the class and `scale`, `shift` to the image. Written out, everything a loss needs is
a sum of products of `[B, D]` rows with `[K, D]` matrices:

    v . c'   = (v . c + v . delta + (v * scale) . c + v . shift) / n
    c . c'   = (1 + c . delta + scale . c^2 + shift . c) / n
    n^2      = 1 + 2 c . delta + |delta|^2 + |shift|^2 + (2 scale + scale^2) . c^2
               + 2 ((1 + scale) * shift) . c + 2 shift . delta + 2 scale . (delta * c)

All terms but `v . c` and 1 are zero while the maps are zero, so the cosines of the base come out bit for
bit, and rounding (bf16 products) touches only the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .products import Plan, Term, divided_sums

__all__ = ["TextMap", "TunedCosines", "tuned_cosines"]


@dataclass(frozen=True)
class TextMap:
    """How text features move; None is zero.

    Args:
        scale: Change of scale an image, `[B, D]`.
        shift: Shift an image, `[B, D]`.
        delta: Change a class, the same for all images, `[K, D]`.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    delta: Tensor | None = None


class TunedCosines(NamedTuple):
    """Cosines of images with moved text features, and of moved with original text features."""

    cosines: Tensor
    knowledge: Tensor | None


def tuned_cosines(
    queries: Tensor,
    classes: Tensor,
    text_map: TextMap,
    *,
    knowledge: bool = False,
    deltas_dtype: torch.dtype | None = None,
) -> TunedCosines:
    """Return `v . c'` for all images and classes and, when asked, `c . c'`: exact, and fast as a matrix product.

    Args:
        queries: Unit-length image features `[B, D]`, or `[B, Q, D]` when Q features (crops) share the
            text features of one image.
        classes: Unit-length text features, `[K, D]`.
        text_map: How each image moves them.
        knowledge: Also return `c . c'`.
        deltas_dtype: Precision of the products that are zero for an untrained map, such as bfloat16.

    Returns:
        `cosines`, `[B, K]` or `[B, Q, K]`, and `knowledge`, `[B, K]` (`[1, K]` for a map that is the
        same for all images), or None.

    Example:
        >>> import torch
        >>> queries, classes = torch.eye(3)[:2], torch.eye(3)
        >>> tuned_cosines(queries, classes, TextMap(shift=torch.ones(2, 3))).cosines[0]
        tensor([0.8165, 0.4082, 0.4082])
    """
    grouped = queries if queries.ndim == 3 else queries.unsqueeze(1)
    base = flat = grouped.flatten(0, 1)
    scale, shift, delta = text_map.scale, text_map.shift, text_map.delta
    terms: list[Term] = []
    rows: list[Tensor] = []

    def add(matrix: str, target: str, values: Tensor) -> None:
        terms.append((matrix, target))
        rows.append(values)

    query_offset = squared_rows = None
    if scale is not None:
        if deltas_dtype is None:
            # One product for `v . c + (v * scale) . c`: for a zero scale it is `v . c` bit for bit all the same.
            base = (grouped * (1 + scale.unsqueeze(1))).flatten(0, 1)
        else:
            add("classes", "cosines", (grouped * scale.unsqueeze(1)).flatten(0, 1))
        add("squares", "norms", 2 * scale + scale * scale)
        if knowledge:
            add("squares", "knowledge", scale)
        if delta is not None:
            add("products", "norms", 2 * scale)
    if shift is not None:
        query_offset = (grouped * shift.unsqueeze(1)).sum(-1).flatten().unsqueeze(1)
        squared_rows = (shift * shift).sum(-1, keepdim=True)
        add("classes", "norms", 2 * (shift if scale is None else shift * (1 + scale)))
        if knowledge:
            add("classes", "knowledge", shift)
        if delta is not None:
            add("deltas", "norms", 2 * shift)
    squared_columns = knowledge_columns = None
    if delta is not None:
        add("deltas", "cosines", flat)
        knowledge_columns = (classes * delta).sum(-1)
        squared_columns = 2 * knowledge_columns + (delta * delta).sum(-1)
    batch = 1 if scale is None and shift is None else len(grouped)
    plan = Plan(tuple(terms), len(grouped), grouped.shape[1], batch, knowledge, deltas_dtype)
    offsets = (query_offset, squared_rows, squared_columns, knowledge_columns)
    cosines, kept = divided_sums(plan, base, classes, delta, offsets, rows)
    shape = (*queries.shape[:-1], len(classes))
    return TunedCosines(cosines.reshape(shape), kept if knowledge else None)
