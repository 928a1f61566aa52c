"""Templates: the named ones, and what a template of one's own must be."""

import pytest

from hf_oodclip import list_templates
from hf_oodclip.errors import TemplateError, UnknownNameError
from hf_oodclip.templates import TEMPLATES, resolve_templates

# Written down from methods.md 0.2 and C16, not from the table.
EXPECTED = {
    "photo": ["a photo of a {}."],
    "mcm": ["a photo of a {}"],
    "nice": ["the nice {}"],
    "nice_period": ["the nice {}."],
    "adjective": ["This is a {} photo"],
    "adjective_period": ["This is a {} photo."],
    "tip7": [
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ],
    "csp": [
        "a close-up photo of the nice {}.",
        "a photo with the nice {}.",
        "a good photo with the nice {}.",
        "a photo of the nice {}.",
        "{}",
        "the {}",
        "the good {}",
        "the nice {}",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_named_templates_are_those_of_the_papers(name: str) -> None:
    assert resolve_templates(name) == EXPECTED[name]


def test_names_are_listed_in_order() -> None:
    assert list_templates() == sorted(TEMPLATES)
    assert set(list_templates()) >= set(EXPECTED)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_named_template_passes_the_check_for_own_ones(name: str) -> None:
    assert resolve_templates(list(TEMPLATES[name])) == list(TEMPLATES[name])


def test_the_answer_is_a_fresh_list() -> None:
    resolve_templates("photo").append("spoilt {}")
    assert resolve_templates("photo") == EXPECTED["photo"]


@pytest.mark.parametrize("own", ["a sketch of a {}", "{}", "{}!"])
def test_one_template_of_ones_own(own: str) -> None:
    assert resolve_templates(own) == [own]


def test_several_templates_keep_order_and_duplicates() -> None:
    own = ["b {}", "a {}", "b {}"]
    assert resolve_templates(own) == own
    assert resolve_templates(tuple(own)) == own


BAD = [
    "a photo",
    "a {} of {}",
    "a {0}",
    "a {label}",
    "a {:>10}",
    "a {!r}",
    "a {} and {x}",
    "a {",
    "{{}}",
    "{ }",
    "a { {}",
]


@pytest.mark.parametrize("template", BAD)
@pytest.mark.parametrize("as_list", [False, True])
def test_a_template_without_exactly_one_place_is_refused(template: str, as_list: bool) -> None:
    with pytest.raises(TemplateError, match=r"exactly one \{\}") as caught:
        resolve_templates(["fine {}", template] if as_list else template)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize("entry", [None, 3, b"a {}", ["a {}"]])
def test_a_template_that_is_no_string_is_refused(entry: object) -> None:
    with pytest.raises(TemplateError, match="exactly one"):
        resolve_templates(["a {}", entry])  # type: ignore[list-item]


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(TemplateError, match="empty"):
        resolve_templates([])


@pytest.mark.parametrize(("wrong", "nearest"), [("foto", "photo"), ("Nice", "nice"), ("tip-7", "tip7")])
def test_an_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"'{wrong}'.*Did you mean '{nearest}'") as caught:
        resolve_templates(wrong)
    assert all(name in str(caught.value) for name in TEMPLATES)
    assert "{}" in str(caught.value)


def test_a_name_inside_a_list_is_no_template() -> None:
    with pytest.raises(TemplateError, match="'photo'"):
        resolve_templates(["photo", "a {}"])
