"""Sums of matrix products divided by norms, forward and backward, a block of classes at a time.

The arithmetic behind `gemm.tuned_cosines`. With `rows` of `[B, D]` and matrices made of the text features
(`classes` C, `squares` C^2, `deltas` E, `products` E*C) it computes

    cosines = (v C^T + sum rows M^T + offsets) / n,   knowledge = (1 + ...) / n,   n^2 = 1 + ...

and keeps for the backward only what it returns, and `1/n`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Plan", "Term", "divided_sums"]

# What one block of a [K, D] temporary may hold: large enough for fast products, small beside the outputs.
_BLOCK_ELEMENTS = 1 << 20
_MIN_SQUARED_NORM = 1e-12

# Positions of the inputs of the autograd function that can need a gradient; the rows follow.
_FLAT, _CLASSES, _DELTA, _QUERY_OFFSET, _SQUARED_ROWS, _SQUARED_COLUMNS, _KNOWLEDGE_COLUMNS, _FIRST_ROW = range(1, 9)

# Which matrix rows are multiplied with (`classes`, `squares`, `deltas`, `products`), and which sum the product
# belongs to (`cosines`, `norms`, `knowledge`).
Term = tuple[str, str]
Offsets = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Plan(NamedTuple):
    """Which rows are multiplied with which matrix, and what the products are added to.

    Args:
        terms: One a tensor of rows.
        images: Images in the batch.
        queries: Features an image.
        batch: Rows of norms and knowledge: `images`, or 1 when they are the same for all images.
        knowledge: Whether knowledge cosines are asked for.
        dtype: Precision of the products of the terms; None leaves it.
    """

    terms: tuple[Term, ...]
    images: int
    queries: int
    batch: int
    knowledge: bool
    dtype: torch.dtype | None

    def groups(self) -> dict[str, list[int]]:
        """Positions of the terms by matrix: those of one matrix share a product."""
        found: dict[str, list[int]] = {}
        for position, (matrix, _) in enumerate(self.terms):
            found.setdefault(matrix, []).append(position)
        return found

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor if self.dtype is None else tensor.to(self.dtype)


def divided_sums(
    plan: Plan, flat: Tensor, classes: Tensor, delta: Tensor | None, offsets: Offsets, rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return cosines `[B * Q, K]` and knowledge cosines `[B, K]` (empty when not asked for).

    Args:
        plan: What belongs together.
        flat: Image features, `[B * Q, D]`, multiplied with the classes in one product as the base does.
        classes: Unit-length text features, `[K, D]`.
        delta: Their change that is the same for all images, `[K, D]`.
        offsets: What is added to cosines `[B * Q, 1]`, to squared norms `[B, 1]` and `[K]`, and to
            knowledge `[K]`.
        rows: One tensor a term of the plan.
    """
    tensors = (flat, classes, delta, *offsets, *rows)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _DividedSums.apply(plan, *tensors)  # type: ignore[no-untyped-call]
    return _forward(plan, flat, classes, delta, offsets, rows)[:2]


def _blocks(classes: Tensor) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // max(1, classes.shape[1]))
    for start in range(0, len(classes), size):
        yield slice(start, min(start + size, len(classes)))


def _matrix(name: str, classes: Tensor, delta: Tensor | None) -> Tensor:
    if name == "classes":
        return classes
    if name == "squares":
        return classes * classes
    assert delta is not None
    return delta if name == "deltas" else delta * classes


def _forward(
    plan: Plan,
    flat: Tensor,
    classes: Tensor,
    delta: Tensor | None,
    offsets: Offsets,
    rows: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    query_offset, squared_rows, squared_columns, knowledge_columns = offsets
    with torch.autocast(flat.device.type, enabled=False):
        # In one product, as the base computes it.
        cosines = flat @ classes.T
        inverse_norms = cosines.new_ones(plan.batch, len(classes))
        kept = cosines.new_ones(plan.batch if plan.knowledge else 0, len(classes))
        targets = {"cosines": cosines, "norms": inverse_norms, "knowledge": kept}
        stacked = {
            matrix: plan.cast(torch.cat([rows[position] for position in positions]))
            for matrix, positions in plan.groups().items()
        }
        for block in _blocks(classes):
            part = {name: target[:, block] for name, target in targets.items()}
            for matrix, positions in plan.groups().items():
                values = plan.cast(_matrix(matrix, classes[block], None if delta is None else delta[block]))
                products = (stacked[matrix] @ values.T).split([len(rows[position]) for position in positions])
                for position, product in zip(positions, products, strict=True):
                    part[plan.terms[position][1]].add_(product)
            if query_offset is not None:
                part["cosines"].add_(query_offset)
            if squared_rows is not None:
                part["norms"].add_(squared_rows)
            if squared_columns is not None:
                part["norms"].add_(squared_columns[block])
            if knowledge_columns is not None and plan.knowledge:
                part["knowledge"].add_(knowledge_columns[block])
            inverse = part["norms"].clamp_(min=_MIN_SQUARED_NORM).rsqrt_()
            part["cosines"].unflatten(0, (plan.images, plan.queries)).mul_(inverse.unsqueeze(1))
            if plan.knowledge:
                part["knowledge"].mul_(inverse)
    return cosines, kept, inverse_norms


class _DividedSums(torch.autograd.Function):
    """The products of `_forward` with a backward that is matrix products too and keeps no [K, D] temporary."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        flat: Tensor,
        classes: Tensor,
        delta: Tensor | None,
        query_offset: Tensor | None,
        squared_rows: Tensor | None,
        squared_columns: Tensor | None,
        knowledge_columns: Tensor | None,
        *rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        offsets = (query_offset, squared_rows, squared_columns, knowledge_columns)
        cosines, kept, inverse_norms = _forward(plan, flat, classes, delta, offsets, rows)
        ctx.plan = plan
        ctx.save_for_backward(flat, classes, delta, cosines, kept, inverse_norms, *rows)
        ctx.set_materialize_grads(False)
        return cosines, kept

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_cosines: Tensor | None, grad_kept: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        flat, classes, delta, cosines, kept, inverse_norms, *rows = ctx.saved_tensors
        grads: dict[int, Tensor] = {}
        needs = ctx.needs_input_grad

        def collect(position: int, make: Any) -> None:
            if needs[position]:
                value = make()
                grads[position] = grads[position] + value if position in grads else value

        def collect_block(position: int, block: slice, value: Tensor) -> None:
            if position not in grads:
                grads[position] = value.new_zeros(len(classes), *value.shape[1:])
            grads[position][block] += value

        with torch.autocast(flat.device.type, enabled=False):
            for block in _blocks(classes):
                values, moved = classes[block], None if delta is None else delta[block]
                targets = _target_grads(plan, inverse_norms, cosines, kept, block, grad_cosines, grad_kept)
                collect(_FLAT, lambda t=targets, v=values: t["cosines"] @ v)
                collect(_QUERY_OFFSET, lambda t=targets: t["cosines"].sum(1, keepdim=True))
                collect(_SQUARED_ROWS, lambda t=targets: t["norms"].sum(1, keepdim=True))
                if needs[_CLASSES]:
                    collect_block(_CLASSES, block, targets["cosines"].T @ flat)
                if needs[_SQUARED_COLUMNS]:
                    collect_block(_SQUARED_COLUMNS, block, targets["norms"].sum(0))
                if needs[_KNOWLEDGE_COLUMNS] and plan.knowledge:
                    collect_block(_KNOWLEDGE_COLUMNS, block, targets["knowledge"].sum(0))
                for matrix, positions in plan.groups().items():
                    stacked = plan.cast(torch.cat([targets[plan.terms[position][1]] for position in positions]))
                    if any(needs[_FIRST_ROW + position] for position in positions):
                        products = (stacked @ plan.cast(_matrix(matrix, values, moved))).to(flat.dtype)
                        sizes = [len(rows[position]) for position in positions]
                        for position, product in zip(positions, products.split(sizes), strict=True):
                            collect(_FIRST_ROW + position, lambda p=product: p)
                    if needs[_CLASSES] or needs[_DELTA]:
                        change = (stacked.T @ plan.cast(torch.cat([rows[p] for p in positions]))).to(flat.dtype)
                        for position, value in _matrix_grads(matrix, change, values, moved):
                            if needs[position]:
                                collect_block(position, block, value)
        return tuple(grads.get(position) for position in range(_FIRST_ROW + len(rows)))


def _target_grads(
    plan: Plan,
    inverse: Tensor,
    cosines: Tensor,
    kept: Tensor,
    block: slice,
    grad_cosines: Tensor | None,
    grad_kept: Tensor | None,
) -> dict[str, Tensor]:
    """Return the gradients of the sums before they were divided by the norms."""
    inverse, cosines, kept = (tensor[:, block] for tensor in (inverse, cosines, kept))
    grouped = (plan.images, plan.queries)
    through_norms = torch.zeros_like(inverse)
    if grad_cosines is None:
        numerators = torch.zeros_like(cosines)
    else:
        upstream = grad_cosines[:, block]
        numerators = (upstream.unflatten(0, grouped) * inverse.unsqueeze(1)).flatten(0, 1)
        weighted = (upstream * cosines).unflatten(0, grouped).sum(1)
        through_norms += weighted.sum(0, keepdim=True) if plan.batch == 1 else weighted
    found = {"cosines": numerators}
    if plan.knowledge and grad_kept is None:
        found["knowledge"] = torch.zeros_like(kept)
    elif plan.knowledge and grad_kept is not None:
        found["knowledge"] = grad_kept[:, block] * inverse
        through_norms += grad_kept[:, block] * kept
    # d(n^2)^(-1/2) = -1/2 n^(-3), of which one power of 1/n is in the cosines already.
    found["norms"] = through_norms.mul_(inverse).mul_(inverse).mul_(-0.5)
    clamped = inverse >= _MIN_SQUARED_NORM**-0.5
    found["norms"].masked_fill_(clamped, 0)
    return found


def _matrix_grads(matrix: str, change: Tensor, classes: Tensor, delta: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Yield the gradients of classes and delta from that of a matrix made of them."""
    if matrix == "classes":
        yield _CLASSES, change
    elif matrix == "squares":
        yield _CLASSES, 2 * classes * change
    elif matrix == "deltas":
        yield _DELTA, change
    else:
        assert delta is not None
        yield _CLASSES, delta * change
        yield _DELTA, classes * change
