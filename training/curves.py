"""The picture of a training run: losses by step, and what was measured on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_learning_curve"]

SHOWN = ("id_accuracy", "auroc", "fpr95", "seen_top1", "held_out_top1")


def draw_learning_curve(path: Path, history: list[dict[str, float]], evaluations: list[dict[str, Any]]) -> bool:
    """Draw the losses and, when there are several, the evaluations; return False without matplotlib.

    Args:
        path: PNG file to write.
        history: One record a logged step: `step`, `learning_rate` and losses.
        evaluations: One record an evaluation: `step` and metrics.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    losses = [name for name in (history[0] if history else {}) if name not in ("step", "learning_rate")]
    measured = [name for name in SHOWN if any(name in each for each in evaluations)]
    panels = len(losses) + bool(measured)
    figure = Figure(figsize=(4.2 * max(1, panels), 3.2), layout="constrained")
    axes = figure.subplots(1, max(1, panels), squeeze=False)[0]
    steps = [record["step"] for record in history]
    for axis, name in zip(axes, losses, strict=False):
        values = [record[name] for record in history]
        axis.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=1)
        window = max(1, len(values) // 20)
        smooth = [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
        axis.plot(steps, smooth, color="tab:blue", linewidth=1.8)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    if measured:
        axis = axes[-1]
        for name in measured:
            rows = [(each["step"], 100 * each[name]) for each in evaluations if name in each]
            axis.plot(*zip(*rows, strict=True), marker="o", label=name.replace("_", " "))
        axis.set_title("on other images, %")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)
    return True
