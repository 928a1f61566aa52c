"""Serving the demo: on this machine alone by default, with no request to anywhere else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .inputs import AppError, Limits

__all__ = ["launch"]


def launch(
    model: str | None = None,
    adapters: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    negatives: str | None = None,
    score: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    device: str | None = None,
    limits: Limits | None = None,
    block: bool = True,
) -> Any:
    """Open the demo and return the page, whose `local_url` says where it is.

    Args:
        model: Folder or Hub id of a CLIP or OODCLIP checkpoint, or `pocket`; by default the base of the first
            adapter, or the pocket CLIP.
        adapters: Folders or Hub ids of adapters for it; the first is in use at the start.
        labels: Labels at the start; those of the adapter or checkpoint by default, else the embedded images'.
        negatives: `neglabel`, `krnft`, a file of `oodclip mine`, or `none`; mined by default.
        score: Score at the start; `neglabel` with negatives by default, else `mcm`.
        host: Address to listen on; 127.0.0.1 by default, or what GRADIO_SERVER_NAME says (as in a Space).
        port: Port; the first free one from 7860 by default.
        share: Make a public link through a server of Gradio.
        device: Where to compute; the best there is by default.
        limits: What a visitor may ask for.
        block: Wait until the demo is stopped.

    Raises:
        AppError: The extra `demo` is not installed.
        OODCLIPError: The model, an adapter, the labels or the negatives cannot be used.

    Example:
        >>> launch(labels=["acorn", "desk"], negatives="none", block=False).local_url  # doctest: +SKIP
        'http://127.0.0.1:7860/'
    """
    # Read by Gradio when it is imported, and at every call.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as error:
        raise AppError('The demo needs Gradio: pip install "hf_oodclip[demo]".') from error
    from .engine import Engine
    from .interface import build_interface
    from .style import CSS

    limits = limits or Limits()
    print("Loading the model and its negatives; mining them takes a while the first time ...", flush=True)
    engine = Engine(model, adapters, labels, negatives, score, device, limits)
    folder = tempfile.TemporaryDirectory(prefix="hf_oodclip_app_", ignore_cleanup_errors=True)
    page = build_interface(engine, Path(folder.name))
    # Removed with the page.
    page.hf_oodclip_folder = folder  # type: ignore[attr-defined]
    page.queue(max_size=limits.waiting, default_concurrency_limit=4, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=limits.file_megabytes * 10**6,
        state_session_capacity=200,
        ssr_mode=False,
        footer_links=[],
        # By name, for those of Gradio's other themes come from the net.
        theme=gr.themes.Base(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
    )
    print(f"The demo is open at {page.local_url} (stop it with Ctrl-C).", flush=True)
    if page.share_url:
        print(f"For everybody, as long as it runs: {page.share_url}", flush=True)
    if block:
        page.block_thread()
    return page
