"""How the demo looks: colours of a verdict in light and dark, and one column on a phone."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
.gradio-container > .main { max-width: 1180px !important; }
#verdict, #verdict > div { padding: 0 !important; }
.oc-card {
  display: flex; gap: 24px; align-items: center; padding: 18px 22px; border-radius: 12px;
  border-left: 10px solid var(--oc); background: color-mix(in srgb, var(--oc) 8%, var(--body-background-fill));
}
.oc-card img { width: 148px; height: 148px; object-fit: contain; border-radius: 8px; flex: none; }
.oc-main { flex: 1 1 300px; min-width: 0; }
.oc-side { flex: 1 1 260px; min-width: 0; }
.oc-file, .oc-why { color: var(--body-text-color); opacity: .75; font-size: 14px; overflow-wrap: anywhere; }
.oc-verdict { font-size: 36px; line-height: 1.15; font-weight: 750; color: var(--oc); margin: 2px 0 6px; }
.oc-answer { font-size: 18px; overflow-wrap: anywhere; }
.oc-why { margin-top: 6px; }
.oc-bar {
  display: grid; grid-template-columns: minmax(0, 1fr) 90px 52px; gap: 8px; align-items: center;
  font-size: 14px; padding: 2px 0;
}
.oc-bar span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.oc-bar > div { background: #8883; border-radius: 4px; height: 9px; }
.oc-bar > div > div { background: var(--body-text-color); opacity: .6; border-radius: 4px; height: 9px; }
.oc-bar b { text-align: right; font-variant-numeric: tabular-nums; font-weight: 500; }
.oc-ood { --oc: #c62828; } .oc-id { --oc: #1565c0; } .oc-open { --oc: #7a5d00; }
.dark .oc-ood { --oc: #ff8a80; } .dark .oc-id { --oc: #82b1ff; } .dark .oc-open { --oc: #ffd54f; }
.oc-plot { width: 100%; height: auto; display: block; }
.oc-plot text { fill: var(--body-text-color); font-size: 13px; }
.oc-plot .oc-bin { fill: #8a96a8; }
.oc-plot .oc-limit { stroke: var(--body-text-color); stroke-dasharray: 5 4; }
.oc-plot .oc-mark { stroke: var(--oc); fill: var(--oc); stroke-width: 2.5; }
.oc-plot text.oc-marked { fill: var(--oc); font-weight: 700; }
#examples, #examples .grid-wrap { height: auto !important; min-height: 0 !important; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#examples .thumbnail-item { min-width: 0; width: 100%; }
#examples .caption-label { max-width: 100%; font-size: 11px; left: 0; right: 0; padding: 1px 4px; }
@media (max-width: 700px) {
  .gradio-container > .main { padding: 14px !important; }
  .oc-card { flex-wrap: wrap; gap: 12px; padding: 14px; }
  .oc-card img { width: 84px; height: 84px; }
  .oc-main { flex-basis: 190px; } .oc-side { flex-basis: 100%; }
  .oc-verdict { font-size: 25px; } .oc-answer { font-size: 16px; }
}
"""
