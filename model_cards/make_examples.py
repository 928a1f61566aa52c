"""Make the cards under `model_cards/examples/` again, from real runs on the embedded images.

    python -m hf_oodclip.model_cards.make_examples card-examples --copy-to model_cards/examples

Needs the extras `eval` and `train`, no network, and some five minutes on two cores.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from hf_oodclip.training.data import load_image_set

from .card import CARD_FILE, write_card
from .measured import PICTURES

__all__ = ["COMMANDS", "NAMES", "main"]

NAMES = ("neglabel-detector", "krnft-pocket")
COMMANDS = (
    "hf_oodclip calibrate id_photos --labels-file labels.txt --negatives neglabel --save neglabel-detector",
    "hf_oodclip.evaluation.evaluate --benchmark pocket --model neglabel-detector --output-dir runs/neglabel-detector",
    "hf_oodclip.training.train --recipe krnft-pocket --output-dir krnft-pocket",
    "hf_oodclip.evaluation.evaluate --benchmark pocket --adapter krnft-pocket --output-dir runs/krnft-pocket",
)


def main(
    work: Annotated[Path, typer.Argument(help="New folder for the models, their runs and cards.")],
    copy_to: Annotated[Path | None, typer.Option(help="Copy the cards and their pictures there.")] = None,
) -> None:
    """Run the commands of the examples and write their cards."""
    work.mkdir(parents=True)
    labels = write_photos(work / "id_photos")
    (work / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    for command in COMMANDS:
        print(f"$ python -m {command}", flush=True)
        subprocess.run([sys.executable, "-m", *command.split()], cwd=work, check=True)
    for name in NAMES:
        card = write_card(work / name, evaluation=[work / "runs" / name])
        print(f"Wrote {card}.")
        if copy_to is not None:
            shutil.rmtree(copy_to / name, ignore_errors=True)
            (copy_to / name).mkdir(parents=True)
            shutil.copy(card, copy_to / name / CARD_FILE)
            shutil.copytree(work / name / PICTURES, copy_to / name / PICTURES)


def write_photos(folder: Path) -> list[str]:
    """Write the embedded calibration images as files, and return their labels."""
    found = load_image_set("embedded", split="calibration")
    folder.mkdir()
    for number, cell in enumerate(found.images["image"]):
        (folder / f"{number:03}.jpg").write_bytes(cell["bytes"])
    return list(found.label_names or ())


if __name__ == "__main__":
    typer.run(main)
