import pytest
from hf_oodclip.model_cards.citations import CLIP, bibtex, papers_of
from hf_oodclip.model_cards.escaping import command_of, fence, last_name, percent, table, text, without_paths

from hf_oodclip import get_score
from hf_oodclip.mining import MINING_METHODS


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("tabby cat", "tabby cat"),
        ("near_heldout", "near_heldout"),
        ("_x_", "&#95;x&#95;"),
        ("a\n# b\u202ec", "a &#35; b c"),
        ("<i>&", "&lt;i&gt;&amp;"),
        ("$x$ `y` *z* a|b", "&#36;x&#36; &#96;y&#96; &#42;z&#42; a&#124;b"),
    ],
)
def test_text_shows_names_letter_by_letter(given, shown):
    assert text(given) == shown


def test_text_is_cut_before_it_is_escaped():
    assert text("<<<<", 3) == "&lt;&lt;…"


def test_figures_stand_to_the_right():
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert percent(0.12345, 0.1, 0.2) == "12.3 [10.0, 20.0]"
    assert percent(None) == "–"


def test_a_fence_is_longer_than_any_in_the_code():
    assert fence("a ```` b") == "`````\na ```` b\n`````"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("/home/me/clip", "clip"),
        ("~/clip", "clip"),
        ("C:\\Users\\me\\clip", "clip"),
        ("/", "folder"),
        ("openai/clip", "openai/clip"),
        ("embedded:far", "embedded:far"),
    ],
)
def test_absolute_paths_keep_their_last_name(given, left):
    assert last_name(given) == left


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("no '/home/me/a b.png' here", "no 'a b.png' here"),
        ("see https://host/a/b and 1/2/3", "see https://host/a/b and 1/2/3"),
        ("C:\\Users\\me\\x.png: gone", "x.png: gone"),
    ],
)
def test_texts_lose_folders(given, left):
    assert without_paths(given) == left


def test_commands_are_those_of_our_programs():
    assert (
        command_of({"command": "train.py --a '/x/y z' --b=/x/y --c 'd e'"})
        == "python -m hf_oodclip.training.train --a 'y z' --b=y --c 'd e'"
    )
    many = command_of({"command": "evaluate.py --a b"}, 4)
    assert many == "accelerate launch --num_processes 4 -m hf_oodclip.evaluation.evaluate --a b"
    assert command_of({"command": "pytest tests"}) is None
    assert command_of({}) is None


def test_papers_are_those_in_use():
    def links(*args):
        return [url.rpartition("/")[2] for url in papers_of(*args)]

    assert links(None, None, [], None) == ["2103.00020"]
    assert links(get_score("delta_energy"), "OODCLIP_CONTEXT_PROMPT", ["ebm"], None) == [
        "2103.00020", "2109.01134", "2510.11296"
    ]  # fmt: skip
    assert links(get_score("neglabel"), "OODCLIP_NFT", ["classification"], "neglabel") == [
        "2103.00020", "2507.19847", "2403.20078"
    ]  # fmt: skip
    assert links(get_score("mcm"), "LORA", [], "krnft") == ["2103.00020", "2211.13445", "2507.19847"]


def test_every_mining_method_has_its_paper():
    assert all(len(papers_of(None, None, [], method)) == 2 for method in MINING_METHODS)


def test_two_papers_of_one_author_and_year_have_two_keys():
    papers = {**papers_of(get_score("delta_energy"), "OODCLIP_NFT", [], None), "other": CLIP}
    keys = [line for line in bibtex(papers).splitlines() if line.startswith("@")]
    assert keys == ["@misc{radford2021,", "@misc{zhu2025,", "@misc{zhu2025x,", "@misc{learning2021,"]
