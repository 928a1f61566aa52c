"""`oodclip demo`: the whole story on real images that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder for the report and the calibrated model.")] = Path(
        "demo-output"
    ),
    num_bootstrap: Annotated[int, typer.Option("--num-bootstrap", min=0, help="Resamples for the intervals.")] = 1000,
) -> None:
    """Run the benchmark `pocket`, write its report, and save a calibrated model: real images, no network."""
    from ..evaluation.demo import run_demo

    run_demo(output, num_bootstrap=num_bootstrap)
