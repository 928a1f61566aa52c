"""Muon for the matrices of a transformer's layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["MatrixOptimizer"]


class MatrixOptimizer:
    """Both optimizers with one learning rate, and one state that a checkpoint can hold.

    Args:
        model: What is trained.
        learning_rate: Of both; Muon's update is scaled to the size of AdamW's.
        weight_decay: Of matrices; vectors and scalars do not decay.

    Source: Jordan et al., Muon, 2024; Liu et al., Muon is scalable for LLM training, 2025 (the scaling).
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        matrices, tables, vectors = [], [], []
        for name, values in model.named_parameters():
            kind = matrices if values.ndim == 2 and ".layers." in name else tables if values.ndim > 1 else vectors
            kind.append(values)
        self.others = [*tables, *vectors]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": tables, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                lr=learning_rate,
                betas=(0.9, 0.98),
            ),
        ]

    def set_rate(self, learning_rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, numbered on."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for optimizer in self.optimizers:
            own, first = optimizer.state_dict(), sum(len(group["params"]) for group in groups)
            state |= {first + index: values for index, values in own["state"].items()}
            groups += [
                {**group, "params": [first + index for index in group["params"]]} for group in own["param_groups"]
            ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            groups, state["param_groups"] = state["param_groups"][:count], state["param_groups"][count:]
            first = min(index for group in groups for index in group["params"])
            indices = {index for group in groups for index in group["params"]}
            optimizer.load_state_dict(
                {
                    "state": {index - first: values for index, values in state["state"].items() if index in indices},
                    "param_groups": [
                        {**group, "params": [index - first for index in group["params"]]} for group in groups
                    ],
                }
            )
