"""Finding a file of a folder or Hub repo, and knowing a missing file from an unreachable one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import CheckpointError

__all__ = ["HTTP_ERROR", "commit_of", "find_file"]

# That of the HTTP library that huggingface_hub is built on, which changed its name between versions.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def find_file(source: str, name: str, options: Mapping[str, Any]) -> str | None:
    """Return the path of a file of a folder or Hub repo (downloaded if need be), None where there is none.

    None means that the file does not exist, or that there is no network by wish (offline mode,
    `local_files_only`) and it is not in the cache. A Hub that fails is an error: what a repo holds
    would else be loaded by half.

    Args:
        source: Folder or Hub id.
        name: Name of the file.
        options: Where on the Hub: `revision`, `subfolder`, `token`, `cache_dir`, ...

    Raises:
        CheckpointError: There is no such repo or revision, no right to read it, or the Hub cannot be reached.
    """
    folder = options.get("subfolder") or ""
    if Path(source).is_dir():
        path = Path(source, folder, name)
        return str(path) if path.is_file() else None
    path_in_repo = f"{folder}/{name}" if folder else name
    options = {key: value for key, value in options.items() if key != "subfolder" and value is not None}
    revision = options["revision"] = _revision_for(source, options.get("revision"))
    offline = is_offline_mode() or options.get("local_files_only", False)
    at = f" at revision {revision!r}" if revision else ""
    try:
        cached = try_to_load_from_cache(source, path_in_repo, options.get("cache_dir"), revision)
        if cached is not None and re.fullmatch("[0-9a-f]{40}", revision or "") and not options.get("force_download"):
            # A commit never changes: neither what it holds, nor what it lacks.
            return cached if isinstance(cached, str) else None
        return hf_hub_download(source, path_in_repo, **{**options, "local_files_only": offline})
    except LocalEntryNotFoundError as error:
        if offline or cached is _CACHED_NO_EXIST:
            return None
        raise _unreachable(source, name, error.__cause__ or error) from error
    except EntryNotFoundError:
        return None
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{source} is neither a folder nor a repo on the Hub that you may read: check its name; for a private "
            "repo pass token=... or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{source} has no revision {revision!r}: give a branch, tag or commit of that repo, or leave it out."
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{source} is neither a folder here nor a name that a Hub repo can have.") from error
    except (HTTP_ERROR, OSError) as error:
        if cached is not None and not isinstance(error, HfHubHTTPError):
            return cached if isinstance(cached, str) else None
        raise _unreachable(f"{source}{at}", name, error) from error


def _revision_for(source: str, revision: Any) -> str | None:
    """Return what a revision means for a repo: transformers' resolved ones are commits of the repo they remember."""
    if not hasattr(revision, "resolved"):
        return revision
    # The stock pipeline asks for an adapter at the revision that it resolved for its base.
    return revision.resolved if getattr(revision, "_repo_id", None) in (None, source) else revision.initial


def _unreachable(source: str, name: str, error: BaseException) -> CheckpointError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return CheckpointError(
            f"The Hub refuses to give {name} of {source} ({status}): the token is wrong or may not read it. Pass "
            "token=... or log in with `hf auth login`."
        )
    lines = str(error).strip().splitlines()
    reason = f"status {status}" if status else f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
    return CheckpointError(
        f"{name} of {source} could not be fetched ({reason}), and it is not in the cache: try again; what was "
        "fetched before is kept."
    )


def commit_of(path: str | None) -> str | None:
    """Return the commit that a file in the Hub cache belongs to, None for a file elsewhere."""
    found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", path or "")
    return found.group(1) if found else None
