"""Pushing a finished folder to the Hub: only what is needed, in one commit, loadable from anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError

from .assets import pocket_path
from .errors import HubError
from .hub_files import HTTP_ERROR

__all__ = ["POCKET", "has_card", "has_written_card", "is_pocket", "push_folder"]

# How the base is called in adapters that travel; everybody who has this package has it.
POCKET = "pocket"
STUB_FILE = "oodclip_stub.py"
STUB = '''"""This repository holds no code: its classes come from the package. pip install hf_oodclip"""

from hf_oodclip import OODCLIPConfig, OODCLIPForImageClassification
'''
AUTO_MAP = {
    "AutoConfig": f"{STUB_FILE.removesuffix('.py')}.OODCLIPConfig",
    "AutoModelForImageClassification": f"{STUB_FILE.removesuffix('.py')}.OODCLIPForImageClassification",
}
_ADAPTER_CONFIG, _CONFIG, _CARD = "adapter_config.json", "config.json", "README.md"
_ADAPTER_FILES = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|ood_head(_negatives)?\.json|ood_head\.safetensors"
)
_MODEL_FILES = re.compile(
    r"(config|negatives|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|vocab"
    r"|added_tokens|model\.safetensors\.index)\.json|merges\.txt|model(-\d+-of-\d+)?\.safetensors"
)
_LINK = re.compile(r"\]\(\s*([^)\s:#]+\.(?:csv|jpg|json|md|png|svg|yaml))\s*\)")


def is_pocket(base: str | Path) -> bool:
    """Tell whether a base is the pocket CLIP: by its name, or as a folder of any installation of this package."""
    return str(base) == POCKET or Path(base).parts[-3:] == Path(pocket_path()).parts[-3:]


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    base: str | None = None,
) -> str:
    """Push an adapter folder, training run or saved model to the Hub in one commit, and return the commit's address.

    Only weights, configs, labels, calibration, tokenizer, image processor and card go, not checkpoints or logs;
    what an earlier push left there and this one lacks is removed. An interrupted push leaves the repo as it was, and
    pushing again goes on from what was uploaded.

    Args:
        folder: The folder; a `README.md` in it is the card, and pictures it links to go with it.
        repo_id: `owner/name`; made if it does not exist.
        private: Whether a new repo is private; None is the owner's default.
        token: Access token; None is the one of `hf auth login`.
        revision: Branch to push to; made if it does not exist.
        commit_message: Message of the commit.
        create_pr: Open a pull request instead of changing the branch.
        base: Adapters: the base to name, when the folder names one that only this machine has.

    Raises:
        HubError: The folder is no adapter or model, its base is a folder of this machine, or the Hub refuses.
    """
    files = _files_to_push(Path(folder), base)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        known = [name for name in there if _ADAPTER_FILES.fullmatch(name) or _MODEL_FILES.fullmatch(name)]
        stale = sorted({*known, *(name for name in there if name == STUB_FILE)} - files.keys())
        # Not upload_folder: it may split what it uploads into several commits.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message or "Upload with hf_oodclip",
            revision=revision,
            create_pr=create_pr,
        )
    except (HTTP_ERROR, OSError, RuntimeError, ValueError) as error:
        raise _explain(repo_id, error) from error
    return commit.pr_url or commit.commit_url


def has_card(repo_id: str, *, token: str | bool | None = None, revision: str | None = None) -> bool:
    """Tell whether a repo is there and has a `README.md`.

    Raises:
        HubError: The Hub cannot be asked.
    """
    try:
        return HfApi(token=token).file_exists(repo_id, _CARD, revision=revision)
    except (HTTP_ERROR, OSError, ValueError) as error:
        raise _explain(repo_id, error) from error


def has_written_card(folder: str | Path) -> bool:
    """Tell whether a folder has a `README.md` that says something, not the empty form that PEFT leaves there."""
    card = Path(folder) / _CARD
    return card.is_file() and "[More Information Needed]" not in card.read_text(encoding="utf-8")


def _files_to_push(folder: Path, base: str | None) -> dict[str, str | bytes]:
    """Return what goes into the repo, by name: paths, and the content of files that change on the way."""
    is_adapter, is_model = (folder / _ADAPTER_CONFIG).is_file(), (folder / _CONFIG).is_file()
    if is_adapter == is_model:
        what = "both a model and an adapter" if is_model else "neither a saved model nor an adapter"
        raise HubError(
            f"{folder} holds {what} ({_CONFIG}, {_ADAPTER_CONFIG}): give the folder of one of them, written by "
            "save_pretrained or training."
        )
    wanted = _ADAPTER_FILES if is_adapter else _MODEL_FILES
    files: dict[str, str | bytes] = {
        path.name: str(path) for path in folder.iterdir() if path.is_file() and wanted.fullmatch(path.name)
    }
    if not any(name.endswith(".safetensors") and "model" in name for name in files):
        raise HubError(f"{folder} has no weights in safetensors: save it again with save_pretrained.")
    if is_adapter:
        files[_ADAPTER_CONFIG] = _adapter_config(folder, base)
    elif base is not None:
        raise HubError(f"base={base!r} is for adapters, and {folder} is a whole model: leave base out.")
    else:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if config.get("model_type") == "oodclip":
            config["auto_map"] = AUTO_MAP
            files[STUB_FILE] = STUB.encode()
            files[_CONFIG] = _encode(config)
    card = folder / _CARD
    if has_written_card(folder):
        files[_CARD] = str(card)
        for link in _LINK.findall(card.read_text(encoding="utf-8")):
            path = (folder / link).resolve()
            if path.is_file() and path.is_relative_to(folder.resolve()) and ".." not in Path(link).parts:
                files.setdefault(Path(link).as_posix(), str(path))
    return files


def _adapter_config(folder: Path, base: str | None) -> bytes:
    config = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    named = config.get("base_model_name_or_path")
    if base is not None and base != named:
        config.update(base_model_name_or_path=base, revision=None)
    elif named and is_pocket(named):
        config.update(base_model_name_or_path=POCKET, revision=None)
    elif not named or Path(named).is_absolute() or Path(named).exists():
        raise HubError(
            f"The adapter in {folder} names {named!r} as its base, which nobody else has: push the base first, and "
            "give its id here, base='owner/name' (--base owner/name)."
        )
    return _encode(config)


def _encode(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _explain(repo_id: str, error: Exception) -> HubError:
    """Return what went wrong as one sentence, and what to do."""
    if isinstance(error, HFValidationError):
        return HubError(f"{repo_id!r} cannot be the name of a repo: give owner/name.")
    # An upload that fails is wrapped once.
    cause = error if isinstance(error, HTTP_ERROR) or error.__cause__ is None else error.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    advice = {
        401: "the token is missing or wrong: pass token=... or log in with `hf auth login`",
        403: "you may not write there: it belongs to somebody else, or the token can only read. Push to a repo of "
        "your own, or use a token that may write",
        404: "there is no such repo or revision that you can see: check the name, and that the token may read it",
        409: "it was changed at the same moment: push again",
    }
    if status in advice:
        reason = advice[status]
    elif isinstance(cause, HTTP_ERROR):
        what = f"the Hub answered {status}" if status else f"the Hub cannot be reached ({type(cause).__name__})"
        reason = f"{what}: push again, and it goes on from what was uploaded; nothing half-pushed is visible"
    else:
        reason = " ".join(lines) or type(cause).__name__
    return HubError(f"{repo_id} was not pushed: {reason}.")
