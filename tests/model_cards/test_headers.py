import shutil

import pytest
from hf_oodclip.model_cards.card import write_card
from huggingface_hub import ModelCard

from hf_oodclip.errors import CardError


def header_of(path):
    return ModelCard.load(path).data.to_dict()


def test_pefts_own_card_is_merged(trained, change_json, tiny_clip):
    change_json(trained / "adapter_config.json", base_model_name_or_path="openai/clip-vit-base-patch16")
    (trained / "README.md").write_text(
        "---\nbase_model: openai/clip-vit-base-patch16\nlibrary_name: peft\nlicense: mit\ntags:\n"
        "- base_model:adapter:openai/clip-vit-base-patch16\n- mine\n---\n\n# Model Card\n\n[More Information Needed]\n"
        "### Framework versions\n\n- PEFT 0.21.2"
    )
    path = write_card(trained)
    found = header_of(path)
    assert found == {
        "license": "mit",
        "library_name": "peft",
        "pipeline_tag": "image-classification",
        "base_model": "openai/clip-vit-base-patch16",
        "base_model_relation": "adapter",
        "tags": [
            "hf_oodclip",
            "clip",
            "out-of-distribution-detection",
            "mine",
            "base_model:adapter:openai/clip-vit-base-patch16",
        ],
    }
    assert "licence of this model" not in path.read_text()
    assert "[openai/clip-vit-base-patch16](https://huggingface.co/openai/clip-vit-base-patch16)" in path.read_text()


def test_a_local_base_is_in_no_header(trained, tiny_clip):
    (trained / "README.md").write_text(
        f"---\nbase_model: {tiny_clip}\nlibrary_name: peft\ntags: ['base_model:adapter:{tiny_clip}']\n---\n"
        "[More Information Needed]"
    )
    found = header_of(write_card(trained))
    assert "base_model" not in found and "base_model_relation" not in found
    assert not any(str(tiny_clip) in tag for tag in found["tags"])


@pytest.mark.parametrize("base", ["pocket", "/somewhere/site-packages/hf_oodclip/assets/pocket_clip"])
def test_the_pocket_base_goes_by_its_name(trained, change_json, base):
    change_json(trained / "adapter_config.json", base_model_name_or_path=base)
    text = write_card(trained).read_text()
    assert "| Base | the pocket CLIP that ships with `hf_oodclip`" in text
    assert "somewhere" not in text and "base_model" not in text


def test_figures_of_an_earlier_card_do_not_stay(whole_card, tmp_path):
    folder = shutil.copytree(whole_card.parent, tmp_path / "copy")
    path = folder / "README.md"
    assert "model-index" in header_of(path)
    path.write_text(path.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    write_card(folder)
    found = header_of(path)
    assert found["license"] == "apache-2.0" and "model-index" not in found
    assert [path.name for path in (folder / "card_pictures").iterdir()] == ["learning_curve.png"]


def test_a_card_written_by_hand_is_replaced_on_purpose_only(trained):
    path = trained / "README.md"
    path.write_text("# My own words\n")
    with pytest.raises(CardError, match="written by hand"):
        write_card(trained)
    assert path.read_text() == "# My own words\n"
    write_card(trained, overwrite=True)
    assert "My own words" not in path.read_text()


def test_a_header_that_is_no_yaml_is_refused(trained):
    (trained / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(CardError, match="mend its header"):
        write_card(trained)
