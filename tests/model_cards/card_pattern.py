"""What a whole card looks like: one regular expression, of the sections that are expected."""

import re

NUMBER = r"-?[\d,.]+(e-\d+)?"
SHARE = r"\d+\.\d"
WITH_INTERVAL = rf"{SHARE} \[{SHARE}, {SHARE}\]"
ROWS = r"(\|[^\n]*\|\n)+"
SECTIONS = {
    "head": r"""# \S[^\n]*

\S[^\n]* out-of-distribution \(OOD\) detection, with `hf_oodclip`\.

\|  \|  \|
\| --- \| --- \|
\| What it is \| [^\n]+ \|
(\| Base \| [^\n]+ \|
)?(\| Licence of the base \| [^\n]+ \|
)?(\| Labels \| \d+ \|
\| Negatives \| [^\n]+ \|
\| OOD score \| [\w.=(), ]+ \(\[[^\]]+\]\(https://[^)]+\); larger = more OOD\) \|
\| Decides \| (yes, calibrated|no: it scores and is not calibrated) \|
)?
## How to use it

```python
import hf_oodclip
from transformers import pipeline

[^`]+
print\(classifier\("photo\.jpg"\)\)
```

Each image gives [^\n]+
""",
    "labels": r"""
## Labels

\S[^\n]+\.

Prompted by “[^\n]+”\.
""",
    "negatives": r"""
## Negatives

[\d,]+ words that are none of the labels[^\n]+\. The first are [^\n]+\. All of them, [^\n]+ `[a-z_]+\.json`\.
""",
    "training": rf"""
## Training

\|  \|  \|
\| --- \| --- \|
\| Recipe \| [^\n]+ \|
\| Images \| \d+ images of \d+ labels \|
\| Data \| [^\n]+ \|
\| Shown as \| \w+ \|
\| Losses \| [^\n]+ \|
\| Adapter \| type \w+[^\n]* \|
\| Optimiser \| \w+, learning rate {NUMBER}, schedule \w+ \|
\| Length \| \d+ epochs, \d+ steps of \d+ images \|
\| Mixed precision \| \w+ \|
\| Seed \| \d+ \|

\| on held-out images, in % \| before \| after \|
\| --- \| ---: \| ---: \|
\| ID accuracy \| {SHARE} \| {SHARE} \|
\| AUROC, mean \| {SHARE} \| {SHARE} \|
\| FPR95 \(ID positive\), mean \| {SHARE} \| {SHARE} \|

OOD images: [^\n]+\.

!\[Learning curve\]\(card_pictures/learning_curve\.png\)
""",
    "calibration": rf"""
## Operating point

An image is called OOD when its [^\n]+ score is above \*\*{NUMBER}\*\*\. The threshold was set on \d+ ID images by \
the \w+ rule, to accept {SHARE} % of ID images\. With {SHARE} % confidence it accepts between {SHARE} % and \
{SHARE} % of new ID images\.( Calibrated on: [^\n]+\.)?
""",
    "evaluation": rf"""
## Evaluation: [^\n]+

(- Set [^\n]+ \(\w+, \d+ images\): accuracy {WITH_INTERVAL} %; the threshold accepts {SHARE} %\.
)+
All figures in %, score \w+; in brackets 95 % intervals\. AUROC: [^\n]+ FPR95, ID positive: [^\n]+ FPR95, OOD \
positive: [^\n]+

\| OOD set \| kind \| images \| AUROC \| FPR95, ID positive \| FPR95, OOD positive \| accepted as ID \|
\| --- \| --- \| ---: \| ---: \| ---: \| ---: \| ---: \|
(\| [^|\n]+ \| (near|far) \| \d+ \| ({WITH_INTERVAL} \| ){{3}}{SHARE} \|
)+(\| mean of \w+ \| \w+ \|  \| ({SHARE} \| ){{3}}– \|
)*
!\[Histograms[^\]]+\]\(card_pictures/01_[a-z0-9-]+_histogram\.png\)

!\[ROC curves[^\]]+\]\(card_pictures/01_[a-z0-9-]+_roc\.png\)

### Where it fails

The OOD sets it tells apart worst:

(- Set [^\n]+ \((near|far)\): AUROC {WITH_INTERVAL} %; {SHARE} % of its images are accepted as ID\.
){{1,2}}
### Most confident mistakes

At this model's threshold; [^\n]+

\| mistake \(how many in all\) \| image \| its label \| taken for \| ood_score \| nearest negative \|
{ROWS}""",
    "commands": r"""
## Commands

```bash
(# [^\n]+
(python|accelerate launch)[^\n]* -m hf_oodclip\.(training\.train|evaluation\.evaluate) [^\n]+
)+```
""",
    "versions": rf"""
## Versions and time

{ROWS}
([^\n]+: [\d,]+ s( \([^\n)]+\))?\.)+
""",
    "limits": r"""
## Limits

(- [^\n]+\.
)+""",
    "citation": r"""
## Citation

```bibtex
(@misc\{[a-z]+\d{4},
  title = \{\{[^\n]+\}\},
(  author = \{[^\n]+\},
)?  year = \{\d{4}\},
  howpublished = \{[^\n]+\},
  url = \{https://[^\n]+\},
\}

?)+```
""",
    "missing": r"""
## Not known

What no run left evidence of:

(- [^\n]+
)+""",
}
MARKER = r"<!-- Written by `oodclip card` [^\n]+ -->\n\n"


def assert_whole_card(text, *expected):
    """The card is its header and these sections, nothing else; the failure names the first that does not fit."""
    names = ["head", *expected, "limits", "citation", "missing"]
    start = re.match(rf"---\n.*?\n---\n+{MARKER}", text, re.DOTALL)
    assert start is not None, text[:500]
    place = start.end()
    for name in names:
        found = re.compile(SECTIONS[name].replace("\\\n", "")).match(text, place)
        assert found is not None, f"{name} does not fit:\n{text[place : place + 1500]}"
        place = found.end()
    assert text[place:] == ""
