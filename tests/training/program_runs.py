"""The training program as a command, with arguments for a run of a second."""

import subprocess
import sys
from pathlib import Path

from small_runs import CLASSES

PROGRAM = Path(__file__).parents[2] / "training" / "train.py"
MODULE = [sys.executable, "-m", "hf_oodclip.training.train"]
SMALL = {
    "classes": ",".join(CLASSES),
    "dataset": "embedded",
    "split": "calibration",
    "shots": 1,
    "num-crops": 4,
    "selected_crops": 2,
    "num-negatives": "none",
    "epochs": 1,
    "tracker": "none",
    "eval-limit": 8,
}


def arguments(recipe, output, base, **fields):
    given = {**SMALL, "base": base, **fields}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["--recipe", recipe, "--output-dir", str(output), *options]


def run(command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, **options)
