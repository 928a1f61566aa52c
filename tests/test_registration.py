"""Importing the package: cheap, in any order, and nothing swallowed."""

import itertools
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification

import hf_oodclip

BEFORE = [
    "",
    "import transformers.models.auto.modeling_auto",
    "from transformers import CLIPModel",
    "from transformers import pipeline",
    "import peft",
    "import transformers.generation.utils",
]
AFTER = [
    "",
    "from transformers import CLIPModel",
    "import peft",
    "import hf_oodclip.modeling_oodclip",
    "import transformers.models.auto.modeling_auto",
    "from transformers.generation import GenerationMixin",
    "from transformers import Trainer",
    "from transformers import pipeline",
    "import hf_oodclip.pipeline_oodclip",
    "from hf_oodclip import OODCLIPConfig",
    "from transformers import AutoTokenizer",
    "from transformers import AutoImageProcessor, AutoProcessor",
    "from transformers import CLIPProcessor",
    "from transformers import AutoModelForImageClassification",
]
QUICK = [
    ("", ""),
    ("from transformers import pipeline", "import hf_oodclip.modeling_oodclip"),
    ("", "from transformers.generation import GenerationMixin"),
    ("", "from transformers import AutoTokenizer"),
    ("", "import hf_oodclip.loading"),
]
# Checks everything that importing the package promises, in one process.
CHECK = """
import json, sys
from transformers import AutoConfig, AutoModelForImageClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
model = AutoModelForImageClassification.from_pretrained({folder!r})
made = pipeline("ood-image-classification", model={folder!r})
print(json.dumps([
    type(AutoConfig.from_pretrained({folder!r})).__name__,
    type(model).__name__,
    type(made).__name__,
    PIPELINE_REGISTRY.get_supported_tasks().count("ood-image-classification"),
    type(model) is sys.modules["hf_oodclip.modeling_oodclip"].OODCLIPForImageClassification is type(made.model),
]))
"""
PROMISED = ["OODCLIPConfig", "OODCLIPForImageClassification", "OODImageClassificationPipeline", 1, True]


@pytest.fixture(scope="module")
def full_tiny(make_model, tiny_clip, tmp_path_factory) -> str:
    """Folder of a full checkpoint of the tiny CLIP."""
    folder = str(tmp_path_factory.mktemp("full_tiny"))
    make_model(tiny_clip).save_pretrained(folder)
    return folder


def assert_promised(run_python, full_tiny, *lines):
    printed = run_python("\n".join([*lines, CHECK.format(folder=full_tiny)]))
    assert json.loads(printed.splitlines()[-1]) == PROMISED


def test_importing_the_package_imports_nothing_heavy(run_python):
    printed = run_python(
        "import sys, hf_oodclip; print(hf_oodclip.pocket_path(), dir(hf_oodclip), hf_oodclip.list_templates, "
        "{'torch', 'transformers', 'datasets', 'peft', 'scipy', 'PIL'} & set(sys.modules))"
    )
    assert printed.endswith("set()")


@pytest.mark.parametrize(("before", "after"), QUICK)
def test_import_order(run_python, full_tiny, before, after):
    assert_promised(run_python, full_tiny, before, "import hf_oodclip", after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [orders for orders in itertools.product(BEFORE, AFTER) if orders not in QUICK]
)
def test_every_import_order(run_python, full_tiny, before, after):
    assert_promised(run_python, full_tiny, before, "import hf_oodclip", after)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import hf_oodclip.modeling_oodclip",
        "import hf_oodclip.pipeline_oodclip",
        "import hf_oodclip.configuration_oodclip",
        "import hf_oodclip.scores",
        "from hf_oodclip import *",
        "from hf_oodclip import mine_negatives",
        "import hf_oodclip.cli",
    ],
)
def test_starting_from_inside_the_package(run_python, full_tiny, first):
    assert_promised(run_python, full_tiny, first)


def test_importing_again_and_reloading_is_harmless(run_python, full_tiny):
    reload = (
        "import importlib, sys; importlib.reload(sys.modules['hf_oodclip.registration']); importlib.reload(hf_oodclip)"
    )
    assert_promised(
        run_python,
        full_tiny,
        "import hf_oodclip",
        reload,
        "from transformers import pipeline",
        "import hf_oodclip",
        reload,
    )


# One module cannot be imported, as where a dependency is missing.
BROKEN = """
import sys
import hf_oodclip
class Broken:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError("broken on purpose: " + name)
broken = Broken()
sys.meta_path.insert(0, broken)
try:
    import transformers.pipelines
except ImportError as error:
    print("ImportError:", error)
else:
    print("nothing raised")
sys.meta_path.remove(broken)
"""


@pytest.mark.parametrize(
    "module",
    ["transformers.pipelines.base", "hf_oodclip.pipeline_oodclip"],
    ids=["of transformers", "of this package"],
)
def test_a_failed_import_is_not_swallowed_and_may_be_tried_again(run_python, full_tiny, module):
    broken = BROKEN.format(module=module)
    printed = run_python("\n".join([broken, CHECK.format(folder=full_tiny)])).splitlines()
    assert printed[0] == f"ImportError: broken on purpose: {module}"
    assert json.loads(printed[-1]) == PROMISED


# ---------------------------------------------------------------- names


def test_every_public_name_is_there():
    assert hf_oodclip.__all__ == sorted(set(hf_oodclip.__all__))
    assert set(hf_oodclip.__all__) <= set(dir(hf_oodclip))
    for name in hf_oodclip.__all__:
        found = getattr(hf_oodclip, name)
        assert name == "__version__" or found.__name__ == name
    assert {"OODCLIPForImageClassification", "pocket_path", "list_scores", "mine_negatives"} <= set(hf_oodclip.__all__)


def test_type_checkers_see_the_same_names():
    text = Path(hf_oodclip.__file__).read_text(encoding="utf-8")
    for name in set(hf_oodclip.__all__) - {"__version__"}:
        assert f"import {name} as {name}\n" in text


def test_star_import():
    names = {}
    exec("from hf_oodclip import *", names)
    assert set(hf_oodclip.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'hf_oodclip' has no attribute 'OODClip'"):
        hf_oodclip.OODClip  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert hf_oodclip.__version__ == version("hf_oodclip")


# ---------------------------------------------------------------- Auto classes


def test_auto_config(full_tiny):
    config = AutoConfig.from_pretrained(full_tiny)
    assert type(config) is hf_oodclip.OODCLIPConfig
    assert (config.num_labels, config.num_negatives, config.clip_config.projection_dim) == (20, 8, 24)
    assert type(AutoConfig.for_model("oodclip")) is hf_oodclip.OODCLIPConfig


def test_auto_model_from_a_config(full_tiny):
    model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(full_tiny))
    assert type(model) is hf_oodclip.OODCLIPForImageClassification
    assert model.text_bank.label_embeds.shape == (20, 24)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    "options",
    [
        {"labels": ["a", "b"]},
        {"negatives": ["gravel"]},
        {"score": "msp"},
        {"templates": "nice"},
        {"templates": ["the nice {}", "a {}"]},
        {"labels": ["a", "b"], "negatives": [], "score": "energy", "templates": "a {}"},
    ],
    ids=" ".join,
)
def test_the_auto_class_takes_the_options_of_our_own(full_tiny, options):
    own = hf_oodclip.OODCLIPForImageClassification.from_pretrained(full_tiny, **options)
    auto = AutoModelForImageClassification.from_pretrained(full_tiny, **options)
    assert (auto.labels, auto.negatives, auto.score) == (own.labels, own.negatives, own.score)
    assert auto.config.label_templates == own.config.label_templates
    assert torch.equal(auto.text_bank.label_embeds, own.text_bank.label_embeds)
