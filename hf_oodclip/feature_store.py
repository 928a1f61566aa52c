"""Image features on disk: computed once, kept in shards, never stale, and whole whenever a run was killed.

A folder a key (a hash of all that decides the features), with `key.json` to read and one safetensors file a
shard of rows. A shard is written beside its place and moved there, so that a run killed at any moment leaves
whole shards only, and the next one goes on after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor
from transformers.utils import logging

from . import encoders
from .dataset_images import dataset_fingerprint, image_reader, read_images
from .errors import FeatureStoreError, ImageReadError
from .feature_shards import Compute, FeatureRows, read_shard, stored_shard, write_whole
from .image_features import iterate_image_embeds
from .text_cache import cache_folder

__all__ = ["FeatureRows", "FeatureStore", "Features", "dataset_fingerprint", "embed_images", "features_key"]

logger = logging.get_logger("hf_oodclip.feature_store")

FORMAT = 1

# Writing a shard takes seconds: what is older was left by a process that died.
LEFTOVER_SECONDS = 3600


@dataclass(frozen=True)
class Features:
    """Features of the images of a dataset, on the CPU.

    Args:
        tensors: By name, `[n, ...]` each.
        rows: The dataset row of each feature, `[n]` int64, ascending.
        skipped: The rows whose image could not be read, each with the reason.
        folder: Where they lie.
    """

    tensors: dict[str, Tensor]
    rows: Tensor
    skipped: dict[int, str]
    folder: Path

    @property
    def image_embeds(self) -> Tensor:
        """Projected image embeddings `[n, D]` before normalisation."""
        return self.tensors["image_embeds"]

    def __len__(self) -> int:
        return len(self.rows)


class FeatureStore:
    """Keeps image features on disk, so that they are computed once for a model and a dataset.

    Args:
        folder: Where; by default `features` under `$HF_OODCLIP_CACHE` or `$HF_HOME/hf_oodclip`. Processes of one
            run must see the same folder: on several machines, one of a shared file system.
        shard_rows: Rows a file: as much as a killed run loses, and the unit that processes share out.

    Raises:
        FeatureStoreError: `shard_rows` is below 1.

    Example:
        >>> import tempfile, hf_oodclip, numpy as np
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(hf_oodclip.pocket_path())
        >>> images = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
        >>> features = FeatureStore(tempfile.mkdtemp()).image_features(model, images)
        >>> features.image_embeds.shape, features.rows.tolist()
        (torch.Size([3, 256]), [0, 1, 2])
    """

    def __init__(self, folder: str | Path | None = None, shard_rows: int = 256) -> None:
        if shard_rows < 1:
            raise FeatureStoreError(f"shard_rows must be at least 1, got {shard_rows}.")
        self.folder = cache_folder().parent / "features" if folder is None else Path(folder)
        self.shard_rows = shard_rows

    def image_features(
        self,
        model: Any,
        dataset: Any,
        *,
        image_column: str = "image",
        batch_size: int = 64,
        accelerator: Any = None,
        progress: bool = False,
    ) -> Features:
        """Return the projected image embeddings of a dataset, before normalisation, in fp32 or fp64.

        An image that cannot be read is left out and listed in `skipped`. `batch_size` is no part of the key: it
        changes features by rounding only.

        Args:
            model: The model whose vision tower and image processor are used.
            dataset: A `datasets.Dataset` (formats and transforms set on it are not applied), or a sequence of
                images in any form `load_image` takes but URLs, of encoded bytes, or of rows that hold one.
            image_column: Where a row holds its image.
            batch_size: Images a forward pass.
            accelerator: An `accelerate.Accelerator` whose processes share the work.
            progress: Show a bar.

        Raises:
            FeatureStoreError: The dataset cannot be read by row number, or the folder cannot be written.
            UnknownNameError: The dataset has no such column.
            NonFiniteError: The vision tower produces NaN or infinity.
        """
        key, compute = _embedding(model, dataset, image_column, batch_size, None)
        return self.collect(key, len(dataset), compute, accelerator=accelerator, progress=progress)

    def image_shards(
        self, model: Any, dataset: Any, *, batch_size: int = 64, accelerator: Any = None, tower: str | None = None
    ) -> Iterator[FeatureRows]:
        """Yield what `image_features` returns one shard at a time: memory does not grow with the dataset.

        `tower` is `encoders.vision_tower_fingerprint(model.clip)` where it is known: for a large tower it takes long.
        """
        key, compute = _embedding(model, dataset, "image", batch_size, tower)
        return self.shards(key, len(dataset), compute, accelerator=accelerator)

    def collect(
        self,
        key: Mapping[str, Any],
        num_rows: int,
        compute: Compute,
        *,
        accelerator: Any = None,
        progress: bool = False,
    ) -> Features:
        """Return the features stored under a key, computing and storing the shards that are not there.

        A shard is always computed as a whole, by one call of `compute`, so features are the same bits whatever
        was interrupted and however many processes took part. Processes that know nothing of each other may work
        on the same features: at worst some shards are computed twice.

        Args:
            key: Everything the features depend on, as JSON has it; see `features_key`.
            num_rows: Rows of the dataset.
            compute: Makes the features of some rows; called with no rows for an empty dataset.
            accelerator: An `accelerate.Accelerator`; its processes take turns with the shards, and each returns
                all features. They must share the folder and the key.
            progress: Show a bar.

        Raises:
            FeatureStoreError: The key is not JSON, the folder cannot be written, `compute` returned other rows
                than asked for, or shards of another process are missing.
            NonFiniteError: A feature is NaN or infinite; the message names the rows. Nothing of the shard is kept.
        """
        shards = list(self.shards(key, num_rows, compute, accelerator=accelerator, progress=progress))
        return _joined(shards, self._open_folder(key, num_rows))

    def shards(
        self,
        key: Mapping[str, Any],
        num_rows: int,
        compute: Compute,
        *,
        accelerator: Any = None,
        progress: bool = False,
    ) -> Iterator[FeatureRows]:
        """Yield what `collect` joins, in order, one shard at a time; arguments and errors are the same."""
        folder = self._open_folder(key, num_rows)
        rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        starts = range(0, max(num_rows, 1), self.shard_rows)
        wanted = [range(start, min(start + self.shard_rows, num_rows)) for start in starts]
        paths = [folder / f"shard-{index:05d}.safetensors" for index in range(len(wanted))]
        skipped: dict[int, str] = {}
        with logging.tqdm(total=num_rows, unit="image", disable=not progress or rank != 0) as bar:
            if processes > 1:
                try:
                    for index, (path, rows) in enumerate(zip(paths, wanted, strict=True)):
                        if index % processes == rank:
                            stored_shard(path, rows, compute)
                        bar.update(len(rows))
                finally:
                    # A process that fails must not leave the others waiting.
                    accelerator.wait_for_everyone()
            for index, (path, rows) in enumerate(zip(paths, wanted, strict=True)):
                shard = read_shard(path) if processes > 1 else stored_shard(path, rows, compute)
                if shard is None:
                    raise FeatureStoreError(
                        f"Shard {index} that process {index % processes} of {processes} computed is not in {folder}: "
                        "give a folder that all processes share, and the same model and dataset to each."
                    )
                skipped |= shard.skipped
                bar.update(len(rows) if processes == 1 else 0)
                yield shard
        if skipped and rank == 0:
            row, reason = next(iter(skipped.items()))
            logger.warning(
                f"{len(skipped)} of {num_rows} images are left out because they cannot be read; the first "
                f"is row {row}: {reason} All are listed in `skipped`."
            )

    def _open_folder(self, key: Mapping[str, Any], num_rows: int) -> Path:
        described = {"format": FORMAT, "num_rows": num_rows, "shard_rows": self.shard_rows, "key": dict(key)}
        try:
            canonical = json.dumps(described, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise FeatureStoreError(
                f"The key of features must be what JSON holds (text, numbers, lists, dicts with text keys): {error}."
            ) from error
        folder = self.folder / hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
        if not (folder / "key.json").exists():
            write_whole(folder / "key.json", (json.dumps(described, sort_keys=True, indent=2) + "\n").encode())
        for leftover in folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()
        return folder


def features_key(
    model: Any, dataset: Any, *, image_column: str = "image", tower: str | None = None, **extra: Any
) -> dict[str, Any]:
    """Return all that decides the features of a dataset's images under a model, as JSON has it.

    Args:
        model: Its vision tower with adapters in it, its dtype and its image processor count.
        dataset: See `dataset_fingerprint`.
        image_column: Where a row holds its image.
        tower: Fingerprint of the vision tower, where it is known.
        extra: Whatever else the features depend on.

    Raises:
        FeatureStoreError, UnknownNameError: See `dataset_fingerprint`.
    """
    processor = model.image_processor
    return {
        "vision_tower": encoders.vision_tower_fingerprint(model.clip) if tower is None else tower,
        "dtype": str(model.clip.dtype),
        "image_processor": processor.to_dict(),
        "versions": {"processor": type(processor).__name__, "pillow": PIL.__version__, "torch": torch.__version__},
        "dataset": dataset_fingerprint(dataset, image_column),
        "image_column": image_column,
        "extra": extra,
    }


def embed_images(model: Any, images: Any, batch_size: int = 64) -> Tensor:
    """Return projected image embeddings `[n, D]` before normalisation, on the CPU, in fp32 or fp64.

    Args:
        model: The model.
        images: As `iterate_image_embeds` takes them; none give `[0, D]`.
        batch_size: Images a forward pass.
    """
    dtype = torch.promote_types(model.clip.dtype, torch.float32)
    nothing = torch.empty(0, model.clip.config.projection_dim, dtype=dtype)
    return torch.cat([nothing, *(part.to("cpu", dtype) for part in iterate_image_embeds(model, images, batch_size))])


def _embedding(model: Any, dataset: Any, image_column: str, batch_size: int, tower: str | None) -> tuple[Any, Compute]:
    """Return the key of a dataset's image embeddings and what computes those of some rows."""
    read = image_reader(dataset, image_column)

    def compute(rows: list[int]) -> FeatureRows:
        kept: list[int] = []
        skipped: dict[int, str] = {}
        parts = [embed_images(model, [], batch_size)]
        for start in range(0, len(rows), batch_size):
            batch = dict(read_images(read, rows[start : start + batch_size], skipped))
            kept.extend(batch)
            parts.append(embed_images(model, list(batch.values()), batch_size))
        return FeatureRows({"image_embeds": torch.cat(parts)}, kept, skipped)

    if batch_size < 1:
        raise ImageReadError(f"batch_size must be at least 1, got {batch_size}.")
    key = features_key(model, dataset, image_column=image_column, tower=tower, features="image_embeds")
    return key, compute


def _joined(shards: list[FeatureRows], folder: Path) -> Features:
    forms = [{name: (tensor.dtype, tensor.shape[1:]) for name, tensor in shard.tensors.items()} for shard in shards]
    for index, form in enumerate(forms):
        if form != forms[0]:
            raise FeatureStoreError(
                f"Shards 0 and {index} of {folder} hold different features, {forms[0]} and {form}: the key must say "
                "all that decides them. Delete the folder."
            )
    return Features(
        tensors={name: torch.cat([shard.tensors[name] for shard in shards]) for name in forms[0]},
        rows=torch.tensor([row for shard in shards for row in shard.rows], dtype=torch.int64),
        skipped={row: reason for shard in shards for row, reason in shard.skipped.items()},
        folder=folder,
    )
