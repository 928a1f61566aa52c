"""The model behind the demo, shared by all visitors: each may have labels of their own without disturbing others."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..adapter_loading import find_base
from ..adapters import ADAPTERS
from ..adapters.checking import read_adapter_config
from ..assets import pocket_path
from ..calibration import MIN_IMAGES, Calibration
from ..errors import CalibrationError, unknown_name
from ..image_features import pixel_values_of
from ..modeling_oodclip import OODCLIPForImageClassification
from .bank import NO_ADAPTER, Bank, ImageResult, Setup, results_of, sharing_towers, usable_scores
from .heat_map import patch_relevance, relevance_picture
from .inputs import AppError, Limits, open_upload
from .samples import calibration_images, sample_labels

__all__ = ["Engine"]

OWN, MINED, NO_NEGATIVES = "as loaded", "mined from WordNet", "none"
KEPT_BANKS = 8
BATCH_SIZE = 32


class Engine:
    """Answers for the demo: verdicts, heat maps and calibrations for any labels, from one set of weights.

    Every setup has a text bank, score and calibrations of its own around the same towers; the last ones used are
    kept. One visitor at a time uses the towers.

    Args:
        model: Folder or Hub id of a CLIP or OODCLIP checkpoint, or `pocket`; by default the base of the first
            adapter, or the pocket CLIP.
        adapters: Folders or Hub ids of adapters for it; the first is in use at the start.
        labels: Labels at the start; those of the adapter or checkpoint by default, else the embedded images'.
        negatives: At the start: `neglabel`, `krnft`, a file, or `none`. A checkpoint or adapter that has its own
            keeps them when this is None; else they are mined.
        score: Score in use at the start.
        device: Where to compute; the best there is by default.
        limits: What a visitor may ask for.

    Raises:
        OODCLIPError: The model, an adapter, the labels or the negatives cannot be used.
    """

    def __init__(
        self,
        model: str | None = None,
        adapters: Sequence[str] = (),
        labels: Sequence[str] | None = None,
        negatives: str | None = None,
        score: str | None = None,
        device: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._lock = threading.RLock()
        self._table = threading.Lock()
        self._banks: OrderedDict[Setup, Bank] = OrderedDict()
        # Attention maps, for the heat maps, are kept by this implementation alone.
        base = OODCLIPForImageClassification.from_pretrained(_base_of(model, adapters), attn_implementation="eager")
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        base.to(device or best or "cpu").eval().requires_grad_(False)
        self._sources: dict[str, Any] = {NO_ADAPTER: base}
        for folder in adapters:
            self._sources[_unused_name(Path(folder).name, self._sources)] = _with_adapter(base, folder)
        self.negatives: dict[str, Any] = {MINED: "neglabel", NO_NEGATIVES: []}
        if any(source.negatives is not None for source in self._sources.values()):
            self.negatives = {OWN: None, **self.negatives}
        if negatives not in (None, "neglabel", "none"):
            self.negatives = {Path(str(negatives)).name: negatives, **self.negatives}
        self._score = score
        adapter = self.adapters[1] if adapters else NO_ADAPTER
        start = self._sources[adapter]
        own = OWN if start.negatives is not None else MINED
        named = {None: own, "neglabel": MINED, "none": NO_NEGATIVES}.get(negatives, Path(str(negatives)).name)
        self.start = Setup(tuple(labels or start.labels or sample_labels()), named, adapter)
        if score is not None and self.bank(self.start).default_score != score:
            raise unknown_name("score for these labels and negatives", score, self.bank(self.start).scores)

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters to choose from; the first is none."""
        return list(self._sources)

    def bank(self, setup: Setup) -> Bank:
        """Return the model for a setup, made on its first use.

        Raises:
            OODCLIPError: What is wrong with the labels, or with an adapter for these labels.
        """
        found = self._known(setup)
        if found is not None:
            return found
        with self._using_the_model():
            found = self._known(setup) or self._make_bank(setup)
            with self._table:
                self._banks[setup] = found
                while len(self._banks) > KEPT_BANKS:
                    self._banks.popitem(last=False)
        return found

    def _known(self, setup: Setup) -> Bank | None:
        # Not behind the lock of the model: who moves a threshold need not wait for another's images.
        with self._table:
            if setup in self._banks:
                self._banks.move_to_end(setup)
            return self._banks.get(setup)

    def analyse(self, setup: Setup, paths: Sequence[Path]) -> tuple[list[ImageResult], list[str]]:
        """Return what was found about the images, and why some were left out.

        Raises:
            AppError: Too many images, or the model is busy for too long.
        """
        self.limits.check_count(paths)
        results: list[ImageResult] = []
        left_out: list[str] = []
        with self._using_the_model():
            bank = self.bank(setup)
            for chunk, images in self._opened(paths, left_out):
                results += results_of(bank, chunk, images)
        return results, left_out

    def heat_map(self, setup: Setup, score: str, path: Path) -> Image.Image | None:
        """Return a picture of what drove the score of an image, or None for a score without one.

        Raises:
            AppError: The image is gone.
        """
        image = open_upload(path, self.limits)
        with self._using_the_model():
            bank = self.bank(setup)
            processor = bank.model.image_processor
            pixels = pixel_values_of(processor, [image])
            relevance = patch_relevance(
                bank.model, pixels.to(bank.model.device, bank.model.clip.dtype), bank.scores[score]
            )
        return None if relevance is None else relevance_picture(_seen(processor, pixels[0]), relevance)

    def calibrate(
        self, setup: Setup, paths: Sequence[Path], target_tpr: float = 0.95
    ) -> tuple[dict[str, Calibration], list[str]]:
        """Return calibrations of all scores from images of the labels, and why some images were left out.

        Raises:
            CalibrationError: Too few images.
            AppError: Too many images, or the model is busy for too long.
        """
        if len(paths) < MIN_IMAGES:
            raise CalibrationError(
                f"Calibration needs at least {MIN_IMAGES} images of your labels and was given {len(paths)}."
            )
        results, left_out = self.analyse(setup, paths)
        if len(results) < MIN_IMAGES:
            raise CalibrationError(
                f"Calibration needs at least {MIN_IMAGES} readable images of your labels; {len(results)} of "
                f"{len(paths)} could be read. {' '.join(left_out[:3])}"
            )
        return {
            key: Calibration.fit(torch.tensor([result.ood_scores[key] for result in results]), key, target_tpr)
            for key in self.bank(setup).scores
        }, left_out

    @contextmanager
    def _using_the_model(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=self.limits.wait_seconds):
            raise AppError("The demo is busy with other visitors; try again in a minute.")
        try:
            yield
        finally:
            self._lock.release()

    def _make_bank(self, setup: Setup) -> Bank:
        if setup.adapter not in self._sources:
            raise unknown_name("adapter", setup.adapter, self._sources)
        if setup.negatives not in self.negatives:
            raise unknown_name("kind of negatives", setup.negatives, self.negatives)
        model = sharing_towers(self._sources[setup.adapter])
        if setup.labels != tuple(model.labels) or setup.negatives != OWN:
            # First, for set_labels would warn that they are lost.
            model.ood_head.set_calibrations([])
            model.set_labels(list(setup.labels), negatives=self.negatives[setup.negatives])
        scores = usable_scores(model, self._score)
        calibrations = {each.score: each for each in model.ood_head.calibrations if each.score in scores}
        if sorted(setup.labels) == sorted(sample_labels()):
            missing = [score for key, score in scores.items() if key not in calibrations]
            for key, values in model.ood_scores(calibration_images(), missing, BATCH_SIZE).items():
                calibrations[key] = Calibration.fit(values, key)
        return Bank(model, scores, calibrations)

    def _opened(self, paths: Sequence[Path], left_out: list[str]) -> Iterator[tuple[list[Path], list[Image.Image]]]:
        """Yield batches of readable images until the time is up."""
        deadline = time.monotonic() + self.limits.seconds
        for position in range(0, len(paths), BATCH_SIZE):
            if position and time.monotonic() > deadline:
                left_out.append(f"{len(paths) - position} images were left out: the time for one analysis was up.")
                return
            chunk: list[Path] = []
            images: list[Image.Image] = []
            for path in paths[position : position + BATCH_SIZE]:
                try:
                    images.append(open_upload(path, self.limits))
                    chunk.append(path)
                except AppError as error:
                    left_out.append(str(error))
            if images:
                yield chunk, images


def _base_of(model: str | None, adapters: Sequence[str]) -> str:
    if model is None and adapters:
        return find_base(adapters[0], {}).base
    return pocket_path() if model in (None, "pocket") else str(model)


def _unused_name(name: str, taken: Any) -> str:
    return name if name not in taken else next(f"{name} ({n})" for n in range(2, 1000) if f"{name} ({n})" not in taken)


def _with_adapter(base: Any, folder: str) -> Any:
    config = read_adapter_config(folder, {})
    ours = {info.peft_type.value for info in ADAPTERS.values()}
    # Adapters of this package act beside the towers; those of PEFT, such as LoRA, change them.
    shares = config is None or config["peft_type"] in ours
    model = sharing_towers(base) if shares else copy.deepcopy(base)
    model.load_adapter(folder)
    return model.eval().requires_grad_(False)


def _seen(processor: Any, pixel_values: torch.Tensor) -> Image.Image:
    std, mean = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_std", "image_mean"))
    pixels = (pixel_values.cpu().float() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())
