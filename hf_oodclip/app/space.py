"""The demo as a Space: a folder with five lines of code, and the upload."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..errors import HubError
from .inputs import AppError

__all__ = ["push_space", "write_space"]

APP = '''"""The demo of hf_oodclip, as `oodclip app` opens it."""

from hf_oodclip.app import launch

if __name__ == "__main__":
    launch({arguments})
'''
README = """---
{front_matter}---

# {title}

Give images and labels. CLIP names the nearest label, and a calibrated test says whether the image is any of them.

Written by `oodclip push-space` of hf_oodclip {version}. The same on your own machine: `python app.py` in this folder,
with what requirements.txt names installed.
"""
_NOT_NEEDED = shutil.ignore_patterns(".git", "checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "runs", "__pycache__")


def write_space(
    folder: str | Path,
    model: str | None = None,
    adapters: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    negatives: str | None = None,
    score: str | None = None,
    *,
    title: str = "Does CLIP know this image?",
    requirement: str | None = None,
) -> Path:
    """Write the folder of a Space that opens the demo with these settings, and return it.

    What is local (a model, adapters, a file of negatives) is copied into it; what is on the Hub is named.

    Args:
        folder: Where to; it must be new or empty.
        model: As for `launch`.
        adapters: As for `launch`.
        labels: As for `launch`.
        negatives: As for `launch`.
        score: As for `launch`.
        title: Of the Space.
        requirement: Line of requirements.txt that installs this package; by default this version from PyPI.

    Raises:
        AppError: The folder has files, or Gradio is not installed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AppError(f"{folder} is not an empty folder: give a new one, or delete it.")
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise AppError('A Space states the version of Gradio it runs: pip install "hf_oodclip[demo]".') from error
    folder.mkdir(parents=True, exist_ok=True)
    on_hub = [name for name in (model, *adapters) if name not in (None, "pocket") and not Path(name).is_dir()]
    settings: dict[str, Any] = {
        "model": None if model is None else _brought(model, folder, "model"),
        "adapters": [
            _brought(adapter, folder, f"adapters/{number}-{Path(adapter).name}")
            for number, adapter in enumerate(adapters, start=1)
        ],
        "labels": None if labels is None else list(labels),
        "negatives": None if negatives is None else _brought(negatives, folder, f"negatives-{Path(negatives).name}"),
        "score": score,
    }
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items() if value)
    (folder / "app.py").write_text(APP.format(arguments=arguments), encoding="utf-8")
    (folder / "requirements.txt").write_text(
        f"{requirement or f'hf_oodclip[demo]=={__version__}'}\n", encoding="utf-8"
    )
    front_matter = {
        "title": title,
        "emoji": "🔭",
        "colorFrom": "blue",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": gradio,
        "app_file": "app.py",
        "pinned": False,
        "short_description": "CLIP that says when an image is none of its labels",
        "tags": ["ood-detection", "clip"],
        **({"models": on_hub} if on_hub else {}),
    }
    (folder / "README.md").write_text(
        README.format(
            front_matter=yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True),
            title=title,
            version=__version__,
        ),
        encoding="utf-8",
    )
    return folder


def push_space(repo: str, *, private: bool = False, token: str | None = None, **settings: Any) -> str:
    """Write the Space and upload it; return its address.

    Args:
        repo: Name of the Space, such as `me/my-demo`; made if it does not exist.
        private: Make it private.
        token: Hub token; the one you logged in with by default.
        settings: As for `write_space`.

    Raises:
        HubError: The Hub refuses, or cannot be reached.
        AppError: Gradio is not installed.
    """
    from huggingface_hub import HfApi

    from ..hub_files import HTTP_ERROR

    with tempfile.TemporaryDirectory() as parent:
        folder = write_space(Path(parent) / "space", **settings)
        hub = HfApi(token=token)
        try:
            made = hub.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            hub.upload_folder(
                repo_id=made.repo_id,
                repo_type="space",
                folder_path=str(folder),
                commit_message="Demo of hf_oodclip",
            )
        except (HTTP_ERROR, OSError, ValueError) as error:
            raise HubError(
                f"The Space {repo!r} could not be pushed: {error} Log in with `hf auth login`, or write the folder "
                "alone with --output and upload it yourself."
            ) from error
    return str(made)


def _brought(source: str, folder: Path, name: str) -> str:
    """Copy what is local into the folder of the Space, and return what app.py calls it."""
    path = Path(source)
    if path.is_dir():
        shutil.copytree(path, folder / name, ignore=_NOT_NEEDED)
    elif path.is_file():
        shutil.copyfile(path, folder / name)
    else:
        return source
    return name
