"""Negatives: words with their templates and origin, kept in a file a person can read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from hf_oodclip import Negatives, TextEncoder
from hf_oodclip.errors import NegativesError, TemplateError, UnknownNameError

MIXED = Negatives(
    words={"adjective": ["wet", "loud"], "noun": ["fog", "tax law", "café"]},
    templates={"adjective": ["This is a {} photo."], "noun": ["the nice {}.", "a {}"]},
    provenance={"method": "by hand", "label_templates": ["the nice {}."], "pool": {"noun": 3}},
)


@pytest.fixture(scope="module")
def encoder(tiny_clip: str) -> TextEncoder:
    return TextEncoder(CLIPModel.from_pretrained(tiny_clip), AutoTokenizer.from_pretrained(tiny_clip), cache=False)


# ---- own words -----------------------------------------------------------------------------------


def test_own_words_keep_their_order_and_lose_duplicates() -> None:
    negatives = Negatives.from_words(iter(["gravel", "fog", "gravel", "Fog", "tax law"]), "nice")
    assert negatives.texts == ["gravel", "fog", "Fog", "tax law"]
    assert len(negatives) == 4
    assert negatives.words == {"word": ["gravel", "fog", "Fog", "tax law"]}
    assert negatives.templates == {"word": ["the nice {}"]}
    assert negatives.label_templates is None


def test_own_words_are_prompted_as_photos_by_default() -> None:
    assert Negatives.from_words(["fog"]).templates == {"word": ["a photo of a {}."]}
    assert Negatives.from_words(["fog"], ["a {}", "{}"]).templates == {"word": ["a {}", "{}"]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "it is empty"),
        ("gravel", r"got the string 'gravel'"),
        (["fog", ""], "it holds ''"),
        (["fog", " \n"], "it holds ' "),
        (["fog", 3], "it holds 3"),
        ([None], "it holds None"),
        ([["fog"]], r"it holds \['fog'\]"),
        (None, "negatives must be a list"),
    ],
)
def test_own_words_that_cannot_be_used_are_refused(words: Any, told: str) -> None:
    with pytest.raises(NegativesError, match=told):
        Negatives.from_words(words)


def test_templates_are_checked_as_everywhere() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'nice'"):
        Negatives.from_words(["fog"], "nce")
    with pytest.raises(TemplateError, match="exactly one"):
        Negatives.from_words(["fog"], ["no place"])


# ---- order, length, removal ------------------------------------------------------------------------


def test_bank_order_is_that_of_the_kinds() -> None:
    assert MIXED.texts == ["wet", "loud", "fog", "tax law", "café"]
    assert len(MIXED) == 5
    assert MIXED.label_templates == ["the nice {}."]


def test_words_equal_to_a_label_are_left_out_whatever_their_case_and_outer_spaces() -> None:
    kept = MIXED.without(["FOG ", " Café", "tax", "law", "wetter"])
    assert kept.words == {"adjective": ["wet", "loud"], "noun": ["tax law"]}
    assert kept.templates == MIXED.templates
    assert kept.provenance == MIXED.provenance
    assert len(MIXED) == 5
    assert Negatives.from_words([" Fog", "gravel"]).without(["fog"]).texts == ["gravel"]


def test_nothing_to_leave_out_changes_nothing() -> None:
    assert MIXED.without(["cat"]) == MIXED
    assert MIXED.without([]) == MIXED


def test_everything_may_be_left_out() -> None:
    assert len(MIXED.without(MIXED.texts)) == 0


# ---- embeddings --------------------------------------------------------------------------------------


def test_embeddings_follow_bank_order_and_each_kinds_templates(encoder: TextEncoder) -> None:
    embeds = MIXED.embed(encoder)
    expected = [
        encoder.embed([word], MIXED.templates[kind])[0] for kind, words in MIXED.words.items() for word in words
    ]
    torch.testing.assert_close(embeds, torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(5))


def test_a_kind_without_words_is_skipped(encoder: TextEncoder) -> None:
    kept = MIXED.without(["wet", "loud"])
    assert kept.texts == ["fog", "tax law", "café"]
    torch.testing.assert_close(kept.embed(encoder), MIXED.embed(encoder)[2:], rtol=1e-5, atol=1e-5)


def test_no_words_give_no_rows(encoder: TextEncoder) -> None:
    assert MIXED.without(MIXED.texts).embed(encoder).shape == (0, 24)


# ---- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [MIXED, Negatives.from_words(["fog", "雾", '"quoted"'])])
@pytest.mark.parametrize("as_path", [str, Path])
def test_a_saved_file_restores_everything(negatives: Negatives, as_path: Any, tmp_path: Path) -> None:
    path = as_path(tmp_path / "negatives.json")
    negatives.save(path)
    restored = Negatives.load(path)
    assert restored == negatives
    assert restored.texts == negatives.texts
    assert list(restored.words) == list(negatives.words)


def test_a_saved_file_is_readable(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "negatives.json")
    lines = (tmp_path / "negatives.json").read_text(encoding="utf-8").splitlines()
    assert '   "café"' in lines
    assert ' "format": "hf_oodclip negatives 1",' in lines
    assert lines.index('   "wet",') < lines.index('   "fog",')


def test_words_kept_as_tuples_can_be_saved(tmp_path: Path) -> None:
    Negatives({"word": ("fog", "gravel")}, {"word": ("a {}",)}).save(tmp_path / "negatives.json")
    restored = Negatives.load(tmp_path / "negatives.json")
    assert restored == Negatives({"word": ["fog", "gravel"]}, {"word": ["a {}"]})


@pytest.mark.parametrize(
    "text", ["fog\ngravel\ntax law", "\n fog \r\n\r\ngravel\n\ttax law\n\n", "fog\ngravel\nfog\ntax law"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_plain_text_file_has_one_word_a_line(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(text, encoding=encoding)
    assert Negatives.load(tmp_path / "words.txt") == Negatives.from_words(["fog", "gravel", "tax law"])


def test_a_file_an_editor_marked_as_utf8_is_still_a_negatives_file(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "negatives.json")
    text = (tmp_path / "negatives.json").read_text(encoding="utf-8")
    (tmp_path / "negatives.json").write_text(text, encoding="utf-8-sig")
    assert Negatives.load(tmp_path / "negatives.json") == MIXED


def file_content(**changes: Any) -> str:
    content = {"format": "hf_oodclip negatives 1", "provenance": {}, "templates": {"noun": ["a {}"]}}
    content |= {"words": {"noun": ["fog"]}, **changes}
    return json.dumps({key: value for key, value in content.items() if value is not ...})


def test_the_smallest_file_loads(tmp_path: Path) -> None:
    (tmp_path / "negatives.json").write_text(file_content())
    assert Negatives.load(tmp_path / "negatives.json") == Negatives({"noun": ["fog"]}, {"noun": ["a {}"]})


BAD_FILES = {
    "empty": "",
    "blank lines": "\n  \n",
    "half a file": file_content()[:-20],
    "no format": file_content(format=...),
    "another format": file_content(format="hf_oodclip negatives 2"),
    "no words": file_content(words=...),
    "no templates": file_content(templates=...),
    "no provenance": file_content(provenance=...),
    "words without kinds": file_content(words=["fog"]),
    "a string of words": file_content(words={"noun": "fog"}),
    "words that are no strings": file_content(words={"noun": [1]}),
    "empty words": file_content(words={"noun": [" "]}),
    "no words in any kind": file_content(words={"noun": []}),
    "a kind without templates": file_content(words={"noun": ["fog"], "adjective": ["wet"]}),
    "templates without kinds": file_content(templates=["a {}"]),
    "a template without a place": file_content(templates={"noun": ["a photo"]}),
    "provenance of another kind": file_content(provenance="somewhere"),
    "a list": '["fog", "gravel"]',
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=list(BAD_FILES))
def test_a_bad_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "negatives.json"
    path.write_text(text)
    with pytest.raises(NegativesError, match=r"negatives\.json"):
        Negatives.load(path)


@pytest.mark.parametrize("make", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_refused_by_name(make: str, tmp_path: Path) -> None:
    path = tmp_path / "negatives.json"
    if make == "folder":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(NegativesError, match=r"negatives\.json cannot be read"):
        Negatives.load(path)
