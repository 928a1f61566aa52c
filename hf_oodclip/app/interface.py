"""The page of the demo: the verdict first and large, then what to give, and what speaks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from . import views
from .engine import Engine
from .handlers import Handlers, polite

__all__ = ["build_interface"]

HEADING = """# What is it, and does the model know it at all?
Give images and labels. CLIP names the nearest label, and a calibrated test says whether the image is any of them."""


def build_interface(engine: Engine, folder: Path) -> gr.Blocks:
    """Return the page; `folder` is where examples and CSV files are written."""
    handlers = Handlers(engine, folder)
    start, bank, limits = engine.start, engine.bank(engine.start), engine.limits
    kinds = ["image"]
    with gr.Blocks(title="hf_oodclip", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        session = gr.State(handlers.new_session())
        gr.Markdown(HEADING)
        verdict = gr.HTML(elem_id="verdict")
        table = gr.Dataframe(
            headers=views.TABLE_HEADERS, type="array", interactive=False, visible=False, elem_id="table",
            datatype=["number", "str", "str", "number", "number", "str", "number", "str"], max_height=300,
            label="All images; choose a row to see it, ⋮ in a heading to sort",
        )  # fmt: skip
        download = gr.DownloadButton("Download as CSV", visible=False, size="sm", elem_id="csv")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                files = gr.File(
                    file_count="multiple", file_types=kinds, height=150, elem_id="images",
                    label=f"Images (up to {limits.files}, {limits.file_megabytes} MB each)",
                )  # fmt: skip
                whole_folder = gr.UploadButton(
                    "Or a whole folder", file_count="directory", size="sm", elem_id="folder"
                )
                gr.Markdown("Or an example, not chosen by its result:")
                gallery = gr.Gallery(
                    [(str(path), path.stem) for path in handlers.examples],
                    show_label=False, columns=4, height="auto", allow_preview=False,
                    interactive=False, object_fit="cover", elem_id="examples", buttons=[],
                )  # fmt: skip
                labels = gr.Textbox(
                    "\n".join(start.labels), label="Labels, one a line or separated by commas", lines=5, max_lines=8,
                    elem_id="labels",
                )  # fmt: skip
                apply = gr.Button("Use these labels", variant="primary", elem_id="apply")
                with gr.Row():
                    negatives = gr.Radio(list(engine.negatives), value=start.negatives, label="Negatives")
                    adapter = gr.Dropdown(
                        engine.adapters, value=start.adapter, label="Adapter", visible=len(engine.adapters) > 1
                    )
            with gr.Column(scale=6, min_width=320):
                score = gr.Dropdown(list(bank.scores), value=bank.default_score, label="Score", elem_id="score")
                threshold = gr.Slider(label="Threshold: out of distribution above it", elem_id="threshold", buttons=[])
                expectation = gr.Markdown(elem_id="expectation")
                reset = gr.Button("Back to the calibrated threshold", size="sm", visible=False, elem_id="reset")
                gr.Markdown("### Where this image lies")
                histogram = gr.HTML(elem_id="histogram")
                gr.Markdown("### What drove the score: red raised it, blue lowered it")
                heat = gr.Image(
                    show_label=False, interactive=False, height=330, buttons=["fullscreen"], elem_id="heat"
                )
        with gr.Accordion("Calibrate on images of your labels", open=False):
            gr.Markdown(
                "Give at least 20 images that do show your labels, better some hundreds, and none the model was "
                "trained on. The threshold then accepts about the share you ask for, and p-values appear. It says "
                "nothing about how many foreign images are caught."
            )
            with gr.Row():
                id_files = gr.File(file_count="multiple", file_types=kinds, label="ID images", elem_id="id-images")
                with gr.Column():
                    target = gr.Slider(0.5, 0.99, 0.95, step=0.01, label="Share of ID images to accept")
                    calibrate = gr.Button("Calibrate", elem_id="calibrate")

        decision = [session, verdict, histogram, expectation, table, download, reset]
        everything = [*decision, heat, threshold, score, labels]
        choices = [session, labels, negatives, adapter]
        own: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [verdict]}

        page.load(polite(handlers.arrive), None, everything, **own)
        files.upload(polite(handlers.upload), [session, files], everything, **own)
        whole_folder.upload(polite(handlers.upload_folder), [session, whole_folder], everything, **own)
        gallery.select(polite(handlers.example), [session], everything, **own)
        for event in (apply.click, labels.submit, negatives.input, adapter.input):
            event(polite(handlers.change_setup), choices, everything, **own)
        score.input(polite(handlers.change_score), [session, score], everything, **own)
        calibrate.click(polite(handlers.calibrate), [session, id_files, target], everything, **own)
        table.select(polite(handlers.choose), [session], everything, **own)
        reset.click(polite(handlers.calibrated_threshold), [session], everything, **own)
        threshold.input(
            polite(handlers.move_threshold), [session, threshold], decision,
            trigger_mode="always_last", **{**own, "show_progress": "hidden"},
        )  # fmt: skip
    return page
