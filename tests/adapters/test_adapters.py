"""The table of adapters and the door into PEFT."""

import dataclasses
import json
import sys
from pathlib import Path

import peft
import pytest
from peft import PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from slow_nft import cosines_of, randomise

import hf_oodclip
from hf_oodclip import NFTConfig
from hf_oodclip.adapters import ADAPTERS, OODPeftType, get_adapter_classes, list_adapters, register_adapters
from hf_oodclip.errors import AdapterError, UnknownNameError

TABLES = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
# Prints what PEFT's tables hold for us after the given lines, in a fresh interpreter.
CHECK = """
import sys, json
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING as prefixes
print(json.dumps([configs["OODCLIP_NFT"].__name__, tuners["OODCLIP_NFT"].__name__, prefixes["OODCLIP_NFT"]]))
"""
PROMISED = ["NFTConfig", "NFTModel", "tuned_"]
ORDERS = [
    "import hf_oodclip",
    "import hf_oodclip, peft",
    "import peft, hf_oodclip",
    "from hf_oodclip import NFTConfig",
    "import hf_oodclip.adapters.nft",
    "import hf_oodclip.adapters.nft.gemm",
]
SLOW_ORDERS = [
    "import hf_oodclip, peft.mapping",
    "import hf_oodclip; from transformers import Trainer",
    "import hf_oodclip; from transformers import pipeline",
    "import hf_oodclip; from hf_oodclip import OODCLIPForImageClassification",
    "import hf_oodclip.modeling_oodclip",
    "import hf_oodclip.pipeline_oodclip, peft",
    "import transformers.modeling_utils, hf_oodclip",
    "from transformers import PreTrainedModel; import peft, hf_oodclip.modeling_oodclip",
    "import accelerate, hf_oodclip",
    "import importlib, sys, hf_oodclip, peft; importlib.reload(sys.modules['hf_oodclip.registration']); "
    "importlib.reload(hf_oodclip)",
]


def test_canary_peft_still_has_the_door_we_register_through(make_model, tiny_clip, image_embeds, tmp_path):
    """The one test to read when a PEFT release breaks us."""
    closed = (
        f"peft {peft.__version__} has closed the door through which hf_oodclip registers its adapters (its three "
        "PEFT_TYPE_TO_*_MAPPING tables, looked up by the value of peft_type): stay on the supported range in "
        "pyproject.toml until adapters/__init__.py has another way in."
    )
    try:
        model = randomise(get_peft_model(make_model(tiny_clip), NFTConfig()))
        wanted = cosines_of(model, image_embeds)
        model.save_pretrained(tmp_path)
        assert type(PeftConfig.from_pretrained(tmp_path)) is NFTConfig
        again = make_model(tiny_clip)
        again.load_adapter(str(tmp_path))
        assert cosines_of(again, image_embeds).equal(wanted)
        assert cosines_of(peft.PeftModel.from_pretrained(make_model(tiny_clip), tmp_path), image_embeds).equal(wanted)
    except Exception as error:
        pytest.fail(f"{closed} The first thing that failed: {type(error).__name__}: {error}")


@pytest.mark.parametrize("lines", ORDERS)
def test_registered_in_every_import_order(run_python, lines):
    assert json.loads(run_python(lines + CHECK)) == PROMISED


@pytest.mark.slow
@pytest.mark.parametrize("lines", SLOW_ORDERS)
def test_registered_in_more_import_orders(run_python, lines):
    assert json.loads(run_python(lines + CHECK).splitlines()[-1]) == PROMISED


def test_without_peft_nothing_of_it_is_imported(run_python):
    printed = run_python(
        "import hf_oodclip, sys; print(hf_oodclip.list_adapters()); from hf_oodclip import get_score; "
        "get_score('mcm'); print('peft' in sys.modules)"
    )
    assert printed.splitlines() == [str(list_adapters()), "False"]


def test_the_names_are_our_own():
    for member in OODPeftType:
        assert member.name == member.value
        assert member.value.startswith("OODCLIP_")
        assert member.value not in list(peft.PeftType)
        assert json.loads(json.dumps({"peft_type": member})) == {"peft_type": member.value}
        assert hash(member) == hash(member.value)


@pytest.mark.parametrize("name", list_adapters())
def test_every_adapter_has_classes_paper_and_test(name):
    info = ADAPTERS[name]
    config_class, model_class = get_adapter_classes(name)
    assert issubclass(config_class, PeftConfig)
    assert issubclass(model_class, BaseTuner)
    assert issubclass(model_class.tuner_layer_cls, BaseTunerLayer)
    assert config_class().peft_type is info.peft_type
    assert all(part.startswith(model_class.prefix) for part in model_class.tuner_layer_cls.adapter_layer_names)
    assert info.title and info.paper and info.venue and info.year > 2015 and info.url.startswith("https://")
    assert (Path(__file__).parent / f"test_{name}.py").is_file()
    assert config_class.__doc__ and ">>>" in config_class.__doc__


@pytest.mark.parametrize("name", list_adapters())
def test_every_config_field_has_help(name):
    config_class, _ = get_adapter_classes(name)
    for field in dataclasses.fields(config_class):
        assert field.metadata.get("help"), field.name


def test_an_unknown_adapter_is_named():
    with pytest.raises(UnknownNameError, match=r"adapter 'ntf'\. Did you mean 'nft'"):
        get_adapter_classes("ntf")


def test_registering_again_changes_nothing():
    before = [dict(table) for table in TABLES]
    register_adapters()
    assert [dict(table) for table in TABLES] == before


@pytest.mark.parametrize("table", TABLES, ids=["config", "tuner", "prefix"])
def test_a_foreign_class_in_our_place_is_an_error(table, monkeypatch):
    foreign = "foreign_" if table is PEFT_TYPE_TO_PREFIX_MAPPING else type("Foreign", (), {})
    before = [dict(each) for each in TABLES if each is not table]
    monkeypatch.setitem(table, OODPeftType.OODCLIP_NFT, foreign)
    with pytest.raises(AdapterError, match=r"(?i)already hold .*foreign.*OODCLIP_NFT.*Two packages use one name"):
        register_adapters()
    assert table["OODCLIP_NFT"] is foreign
    assert [dict(each) for each in TABLES if each is not table] == before


def test_a_peft_without_tables_is_named(monkeypatch):
    monkeypatch.delattr(sys.modules["peft.mapping"], "PEFT_TYPE_TO_PREFIX_MAPPING")
    with pytest.raises(AdapterError, match=rf"peft {peft.__version__} has closed the door.*pip install"):
        register_adapters()


def test_importing_a_peft_without_tables_warns_and_using_it_raises(run_python, pocket):
    printed = run_python(f"""
import sys, types, logging
import hf_oodclip
import transformers.utils.logging as logs
heard = []
class Ear(logging.Handler):
    def emit(self, record): heard.append(record.getMessage())
logging.getLogger("hf_oodclip").addHandler(Ear())
logs.get_logger("hf_oodclip.registration").addHandler(Ear())
import hf_oodclip.adapters as adapters
from hf_oodclip.errors import AdapterError
def closed(): raise AdapterError("the door is closed")
adapters._peft_tables = closed
import peft
print(len(heard) > 0 and "the door is closed" in heard[0])
model = hf_oodclip.OODCLIPForImageClassification.from_pretrained({pocket!r}, labels=["a", "b"])
try:
    peft.get_peft_model(model, hf_oodclip.NFTConfig())
except AdapterError as error:
    print(error)
""")
    assert printed.splitlines() == ["True", "the door is closed"]


def test_the_public_names():
    assert hf_oodclip.NFTConfig is NFTConfig
    assert hf_oodclip.list_adapters is list_adapters
