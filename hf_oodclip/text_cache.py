"""Text embeddings kept on disk, so that embedding the same texts twice costs once.

One safetensors file a list of texts, under `$HF_HOME/hf_oodclip/text_embeds` (or
`$HF_OODCLIP_CACHE`), named by a hash of text tower, tokenizer, prompts and averaging: a file
cannot be stale. Files are written beside their place and moved there, so a reader never sees half
of one and two writers cannot harm each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers.utils import logging

__all__ = ["cache_folder", "cached_embeds"]

logger = logging.get_logger("hf_oodclip.text_cache")


def cache_folder() -> Path:
    """Return the folder of cached text embeddings (it may not exist yet)."""
    return Path(os.environ.get("HF_OODCLIP_CACHE", Path(HF_HOME) / "hf_oodclip")) / "text_embeds"


def cached_embeds(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return the embeddings stored under `key`, or compute and store them.

    A damaged file is rebuilt and a folder that cannot be written is done without; both are logged.

    Args:
        key: Hash of everything the embeddings depend on.
        compute: Makes the embeddings, `[T, D]`.
    """
    path = cache_folder() / f"{key}.safetensors"
    stored = _read(path)
    if stored is not None:
        return stored
    embeds = compute()
    _write(path, embeds)
    return embeds


def _checksum(embeds: Tensor) -> str:
    raw = embeds.contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(raw.numpy().data, digest_size=16).hexdigest()


def _read(path: Path) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            embeds = file.get_tensor("embeds")
            if _checksum(embeds) == (file.metadata() or {}).get("checksum"):
                return embeds
            reason = "its checksum does not match"
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error)
    logger.warning(f"The cached text embeddings {path} are damaged ({reason}); they are rebuilt.")
    return None


def _write(path: Path, embeds: Tensor) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not save_file: it makes files that only their owner can read, and HF_HOME may be a group's.
        temporary.write_bytes(save({"embeds": embeds.contiguous()}, metadata={"checksum": _checksum(embeds)}))
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        logger.warning(
            f"The text embeddings cannot be kept in {path.parent} ({error}); they are computed again next "
            "time. Set HF_OODCLIP_CACHE to a folder you can write."
        )
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def embeds_key(tower: str, tokenizer: str, prompts: list[list[str]], average: str) -> str:
    """Return the cache key of prompts `[templates][texts]` under one text tower and tokenizer, by their hashes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{tower}|{tokenizer}|{average}|{len(prompts)}|torch {torch.__version__}".encode())
    for texts in prompts:
        digest.update(f"|{len(texts)}|".encode())
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d|" % len(encoded) + encoded)
    return digest.hexdigest()
