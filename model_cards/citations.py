"""BibTeX of the papers that a model rests on, and of no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_oodclip.training.losses import get_loss

from hf_oodclip.adapters import ADAPTERS
from hf_oodclip.scores import get_score

__all__ = ["Paper", "bibtex", "papers_of"]


@dataclass(frozen=True)
class Paper:
    """What a citation needs to know of a paper."""

    paper: str
    venue: str
    year: int
    url: str


CLIP = Paper(
    "Learning Transferable Visual Models From Natural Language Supervision",
    "ICML",
    2021,
    "https://arxiv.org/abs/2103.00020",
)
CSP = Paper(
    "Conjugated Semantic Pool Improves OOD Detection with Pre-trained Vision-Language Models",
    "NeurIPS",
    2024,
    "https://arxiv.org/abs/2410.08611",
)
# Where authors are not listed, the link leads to them: better none than wrong ones.
_AUTHORS = {
    CLIP.url: "Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and "
    "Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and "
    "Krueger, Gretchen and Sutskever, Ilya",
    CSP.url: "Chen, Mengyuan and Gao, Junyu and Xu, Changsheng",
    "https://arxiv.org/abs/2507.19847": "Zhu, Wenjie and Zhang, Yabin and Jin, Xin and Zeng, Wenjun and Zhang, Lei",
    "https://arxiv.org/abs/2510.11296": "Zhu, Lin and Yang, Yifeng and Wang, Xinbing and Gu, Qinying and Ye, Nanyang",
    "https://arxiv.org/abs/2403.20078": "Jiang, Xue and Liu, Feng and Fang, Zhen and Chen, Hong and "
    "Liu, Tongliang and Zheng, Feng and Han, Bo",
    "https://arxiv.org/abs/2211.13445": "Ming, Yifei and Cai, Ziyang and Gu, Jiuxiang and Sun, Yiyou and Li, Wei and "
    "Li, Yixuan",
}
_MINED_BY: dict[str, Any] = {"neglabel": get_score("neglabel").info, "krnft": ADAPTERS["nft"], "csp": CSP}
_OWN_LOSSES = ("knowledge_regularization", "ood_negatives", "ebm")


def papers_of(
    score: Any, peft_type: str | None, losses: Iterable[str], negatives_method: str | None
) -> dict[str, Any]:
    """Return the papers of CLIP, score, adapter, losses and mining method, by their links.

    Args:
        score: The score in use, None without one.
        peft_type: Kind of the adapter, None without one.
        losses: Names of the losses it was trained with.
        negatives_method: How the negatives were mined, None without any.
    """
    found: list[Any] = [CLIP]
    found += [info for info in ADAPTERS.values() if info.peft_type.value == peft_type]
    found += [get_loss(name).info for name in losses if name in _OWN_LOSSES]
    found += [] if score is None else [score.info]
    found += [_MINED_BY[negatives_method]] if negatives_method in _MINED_BY else []
    by_link: dict[str, Any] = {}
    for paper in found:
        by_link.setdefault(paper.url, paper)
    return by_link


def bibtex(papers: Mapping[str, Any]) -> str:
    """Return the papers as BibTeX entries.

    Example:
        >>> print(bibtex({CLIP.url: CLIP}).splitlines()[0])
        @misc{radford2021,
    """
    entries, keys = [], set()
    for url, paper in papers.items():
        author = _AUTHORS.get(url)
        word = (author or paper.paper).split()[0]
        key = f"{re.sub(r'[^a-z]', '', word.lower())}{paper.year}"
        while key in keys:
            key += "x"
        keys.add(key)
        fields = {
            "title": f"{{{paper.paper}}}",
            "author": author,
            "year": paper.year,
            "howpublished": paper.venue,
            "url": url,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value is not None]
        entries.append("\n".join([f"@misc{{{key},", *lines, "}"]))
    return "\n\n".join(entries)
