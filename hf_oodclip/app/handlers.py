"""What the controls of the demo do; each visitor has a session, and none changes the shared model."""

from __future__ import annotations

import functools
import html
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..calibration import Calibration
from ..cli.records import write_csv
from ..errors import OODCLIPError
from ..images import IMAGE_SUFFIXES
from . import views
from .bank import ImageResult, Setup
from .engine import Engine
from .inputs import AppError, open_upload, parse_labels
from .samples import example_images

__all__ = ["Handlers", "Session", "polite"]


@dataclass(frozen=True)
class Session:
    """What one visitor sees: the chosen setup, score and threshold, and the images looked at.

    Args:
        setup: Labels, negatives and adapter.
        score: Key of the score in use.
        threshold: Above it an image is called OOD; None decides nothing.
        results: Of the images, in the order given.
        selected: Which of them is shown in large.
        calibrations: The visitor's own, by setup.
        name: Of its own.
    """

    setup: Setup
    score: str
    threshold: float | None = None
    results: tuple[ImageResult, ...] = ()
    selected: int = 0
    calibrations: dict[Setup, dict[str, Calibration]] = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


def polite(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error of this package as a message, and leave the page as it is."""

    @functools.wraps(handler)
    def answered(*args: Any) -> Any:
        try:
            return handler(*args)
        except OODCLIPError as error:
            _warn(str(error))
            return gr.skip()

    return answered


def _warn(message: str) -> None:
    # Messages are shown as HTML.
    gr.Warning(html.escape(message), title="That did not work")


class Handlers:
    """What the controls do: from a session and new values to the next session and all that shows it."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.examples: list[Path] = []
        for image, caption in example_images():
            self.examples.append(folder / f"{caption}.png")
            image.save(self.examples[-1])

    # ---- sessions ---------------------------------------------------------------------------------

    def new_session(self) -> Session:
        """Return the session of somebody who has just come."""
        return self._with_score(Session(self.engine.start, self.engine.bank(self.engine.start).default_score))

    def calibration(self, session: Session) -> Calibration | None:
        """Return the calibration in use: the visitor's own, else what the setup brings."""
        own = session.calibrations.get(session.setup, {})
        return own.get(session.score) or self.engine.bank(session.setup).calibrations.get(session.score)

    def _with_score(self, session: Session, score: str | None = None) -> Session:
        """Choose a score that the setup has, and start at its calibrated threshold."""
        bank = self.engine.bank(session.setup)
        wanted = score or session.score
        session = replace(session, score=wanted if wanted in bank.scores else bank.default_score)
        calibration = self.calibration(session)
        return replace(session, threshold=None if calibration is None else calibration.threshold)

    def _looked_at(self, session: Session, paths: list[Path]) -> Session:
        results, left_out = self.engine.analyse(session.setup, paths)
        if not results and left_out:
            raise AppError(" ".join(left_out[:3]))
        if left_out:
            _warn(f"{len(left_out)} of {len(paths)} left out. {' '.join(left_out[:3])}")
        return replace(session, results=tuple(results), selected=0)

    # ---- events -----------------------------------------------------------------------------------

    def arrive(self) -> tuple[Any, ...]:
        """Start a session with the first example."""
        return self.show(self._looked_at(self.new_session(), self.examples[:1]))

    def upload(self, session: Session, files: list[str] | str | None) -> tuple[Any, ...]:
        """Look at uploaded images."""
        given = [files] if isinstance(files, str) else files or []
        if not given:
            raise AppError("There is no image; drop one or more.")
        return self.show(self._looked_at(session, [Path(file) for file in given]))

    def upload_folder(self, session: Session, files: list[str] | None) -> tuple[Any, ...]:
        """Look at the images of an uploaded folder."""
        images = [file for file in files or [] if Path(file).suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise AppError("There are no images in this folder.")
        return self.upload(session, images)

    def example(self, session: Session, event: gr.SelectData) -> tuple[Any, ...]:
        """Look at an example."""
        return self.show(self._looked_at(session, [self.examples[int(event.index)]]))

    def change_setup(self, session: Session, labels: str, negatives: str, adapter: str) -> tuple[Any, ...]:
        """Take other labels, negatives or another adapter, and look at the same images again."""
        setup = Setup(parse_labels(labels, self.engine.limits), negatives, adapter)
        changed = self._with_score(replace(session, setup=setup))
        if changed.results:
            looked_at = self._looked_at(changed, [result.path for result in changed.results])
            selected = session.selected if len(looked_at.results) == len(session.results) else 0
            changed = replace(looked_at, selected=selected)
        return self.show(changed)

    def change_score(self, session: Session, score: str) -> tuple[Any, ...]:
        """Decide by another score."""
        return self.show(self._with_score(session, score))

    def calibrate(self, session: Session, files: list[str] | None, target_tpr: float) -> tuple[Any, ...]:
        """Learn when to reject from images of the visitor's labels."""
        paths = [Path(file) for file in files or []]
        found, left_out = self.engine.calibrate(session.setup, paths, target_tpr)
        if left_out:
            _warn(f"{len(left_out)} of {len(paths)} left out. {' '.join(left_out[:3])}")
        gr.Info(f"Calibrated on {len(paths) - len(left_out)} images.")
        return self.show(
            self._with_score(replace(session, calibrations={**session.calibrations, session.setup: found}))
        )

    def choose(self, session: Session, event: gr.SelectData) -> tuple[Any, ...]:
        """Show an image of the table in large."""
        # By its number: sorting in the browser changes where the row stands.
        return self.show(replace(session, selected=int(event.row_value[0]) - 1))

    def move_threshold(self, session: Session, threshold: float) -> tuple[Any, ...]:
        """Decide at another threshold."""
        return self.show_decision(replace(session, threshold=float(threshold)))

    def calibrated_threshold(self, session: Session) -> tuple[Any, ...]:
        """Go back to the calibrated threshold."""
        return self.show(self._with_score(session))

    # ---- what is shown ----------------------------------------------------------------------------

    def show_decision(self, session: Session) -> tuple[Any, ...]:
        """Return all that depends on the threshold."""
        calibration = self.calibration(session)
        info = _expectation(session, calibration)
        back = gr.Button(visible=calibration is not None and session.threshold != calibration.threshold)
        if not session.results:
            return session, "", "", info, gr.Dataframe(visible=False), gr.DownloadButton(visible=False), back
        decisions = [views.decide(each, session.score, session.threshold, calibration) for each in session.results]
        chosen, decision = session.results[session.selected], decisions[session.selected]
        pairs = list(zip(session.results, decisions, strict=True))
        several = len(pairs) > 1
        rows = [views.table_row(number, *pair) for number, pair in enumerate(pairs, start=1)] if several else []
        return (
            session,
            views.verdict(chosen, decision, self._picture(chosen)),
            views.histogram(calibration, session.threshold, decision),
            info,
            gr.Dataframe(value=rows, visible=several),
            gr.DownloadButton(value=self._csv(session, pairs) if several else None, visible=several),
            back,
        )

    def show(self, session: Session) -> tuple[Any, ...]:
        """Return all that depends on a session."""
        chosen = session.results[session.selected] if session.results else None
        heat = None if chosen is None else self.engine.heat_map(session.setup, session.score, chosen.path)
        keys = list(self.engine.bank(session.setup).scores)
        return (
            *self.show_decision(session),
            heat,
            _slider(session, self.calibration(session)),
            gr.Dropdown(choices=keys, value=session.score),
            gr.Textbox(value="\n".join(session.setup.labels)),
        )

    def _picture(self, result: ImageResult) -> Image.Image | None:
        try:
            return open_upload(result.path, self.engine.limits)
        except AppError:
            return None

    def _csv(self, session: Session, pairs: list[tuple[ImageResult, views.Decision]]) -> str:
        # The page keeps a copy of its own, so that one for each visitor is enough.
        path = self.folder / session.name / "verdicts.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            write_csv(file, (views.record(*pair) for pair in pairs))
        return str(path)


def _expectation(session: Session, calibration: Calibration | None) -> str:
    if session.threshold is None:
        return "These labels are not calibrated, so nothing is decided yet: move the threshold, or calibrate below."
    if calibration is None:
        return "You set this threshold yourself; without calibration nobody can say what it accepts."
    share = views.share_accepted(calibration, session.threshold)
    text = f"Accepts **{share:.1%}** of the {calibration.num_images} calibration images."
    if session.threshold == calibration.threshold:
        low, high = calibration.tpr_interval
        text += f" Calibrated for {calibration.target_tpr:.0%}: new ID images are accepted in {low:.0%} to {high:.0%}."
    return text


def _slider(session: Session, calibration: Calibration | None) -> gr.Slider:
    known = [] if calibration is None else [calibration.ood_scores.min().item(), calibration.ood_scores.max().item()]
    known += [result.ood_scores[session.score] for result in session.results]
    low, high = min(known, default=0.0), max(known, default=1.0)
    pad = 0.1 * (high - low) or max(abs(low), 1e-3) * 0.5
    # Scores differ by orders of magnitude: four digits of what the slider spans.
    decimals = max(0, 3 - math.floor(math.log10(high - low + 2 * pad)))
    low, high = round(low - pad, decimals), round(high + pad, decimals)
    value = (low + high) / 2 if session.threshold is None else session.threshold
    return gr.Slider(minimum=low, maximum=high, value=round(value, decimals), step=10.0**-decimals, precision=decimals)
