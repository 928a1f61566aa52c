"""Which weights and classes a run has measured: what a model card checks before it quotes its figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hf_oodclip import Negatives

__all__ = ["classes_fingerprint", "describe_fingerprint", "weights_fingerprint"]

ADAPTER_WEIGHTS, MODEL_WEIGHTS = "adapter_model.safetensors", "model.safetensors"


def describe_fingerprint(model: Any, adapter: str | None) -> dict[str, str | None]:
    """Return the fingerprints of the classes, the weights a model was loaded from, and its adapter.

    Args:
        model: An `OODCLIPForImageClassification`.
        adapter: Folder or Hub id of its adapter, None without one.
    """
    config, is_adapted = model.config, getattr(model, "_hf_peft_config_loaded", False)
    found = weights_fingerprint(adapter, ADAPTER_WEIGHTS) if adapter else None
    return {
        "classes": classes_fingerprint(model.labels, config.label_templates, config.template_average, model.negatives),
        "model": weights_fingerprint(str(model.name_or_path), MODEL_WEIGHTS),
        # An adapter nobody named is no adapter that a card could belong to, but not none either.
        "adapter": found or ("unknown" if adapter or is_adapted else None),
    }


def classes_fingerprint(
    labels: Sequence[str], templates: Sequence[str], average: str, negatives: Negatives | None
) -> str:
    """Return a fingerprint of everything the text features are made of, besides the text tower."""
    words = None
    if negatives is not None:
        kinds = negatives.words
        words = {kind: [list(kinds[kind]), list(negatives.templates[kind])] for kind in kinds}
    content = [list(labels), list(templates), average, words]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def weights_fingerprint(source: str, name: str) -> str | None:
    """Return a fingerprint of a weight file, or of all its shards; None where it cannot be found.

    Args:
        source: Folder or Hub id; of a repo on the Hub the cached copy is taken.
        name: Name of the safetensors file.
    """

    def find(wanted: str) -> str | None:
        try:
            return cached_file(source, wanted, _raise_exceptions_for_missing_entries=False, local_files_only=True)
        except OSError:
            return None

    paths = [find(name)]
    if paths == [None]:
        index = find(f"{name}.index.json")
        if index is None:
            return None
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        paths = [find(shard) for shard in sorted(set(shards))]
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        if path is None:
            return None
        with Path(path).open("rb") as file:
            for part in iter(lambda file=file: file.read(2**24), b""):  # type: ignore[misc]
                digest.update(part)
    return digest.hexdigest()
