"""The scores equal those of pytorch-ood 0.4.0, where it has them, on the inputs of `post_hoc_inputs`.

pytorch-ood is no dependency; `print_pytorch_ood.py` prints the values stored here, and says how to run it.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from post_hoc_inputs import LOGIT_SCALE, edge_cosines, id_images, inputs_of, label_embeds, new_images, waves
from torch.nn.functional import normalize

from hf_oodclip.scores import ScoreInputs, get_score
from hf_oodclip.scores.fitted import FittedScore

# Name, options, their values.
CASES: list[tuple[str, dict[str, Any], list[float]]] = [
    (
        "mcm",
        {"temperature": 0.1},
        [-0.988604068756, -0.988970994949, -0.947196364403, -0.991376101971, -0.972132623196],
    ),
    (
        "msp",
        {"temperature": None},
        [-0.988604082389, -0.988970978776, -0.947196352471, -0.991376026929, -0.972132644434],
    ),
    ("max_logit", {}, [-0.592978362778, -0.640212845998, -0.600124292666, -0.613930894614, -0.592394334305]),
    (
        "energy",
        {"temperature": None},
        [-0.594124497643, -0.641321875178, -0.605549179237, -0.614797032086, -0.595220636141],
    ),
    (
        "entropy",
        {"temperature": None},
        [0.062618619312, 0.0611343549138, 0.207616330795, 0.0496281367455, 0.127299646218],
    ),
    # Their mean over the 2 largest probabilities is a sum here.
    (
        "gen",
        {"temperature": None, "top_m": 2},
        [1.2767952435, 1.2724853032, 1.48213844955, 1.24225140422, 1.39414551826],
    ),
    # Theirs is the distance, squared here.
    ("knn", {"k": 7}, [0.93530916546, 0.913301399095, 0.746534541077, 0.997093761213, 0.88163295267]),
    # Theirs times 2 * 40 and 40: they invert the scatter of the 40 ID images, and take half the distance.
    ("mahalanobis", {}, [16.9796714347, 19.5097867168, 17.5111471582, 9.83137928098, 9.73921749561]),
    ("rmds", {}, [1.0705441857, 1.14305547605, 3.08674373443, 2.96442612363, 3.70451065692]),
    # Their logits are of the embeddings as they are, as here.
    ("vim", {"dim": 4}, [25.9660072327, 19.5126037598, 12.3927631378, 20.9556922913, 16.9495754242]),
    (
        "react",
        {"temperature": None, "feature_space": "normalized"},
        [-0.594124497643, -0.641321875178, -0.600110507645, -0.423953573177, -0.54547573025],
    ),
]
SHAPED = {
    "b": [-0.456937157175, -0.687604490765, -0.676583295542, -0.551858043629, -0.649094085619],
    "p": [-0.320911898386, -0.437786023095, -0.501159743966, -0.586838952559, -0.495548779153],
    "s": [-1.39871808462, -2.0666329713, -1.97671108221, -1.78175020403, -1.79993614429],
}
ODIN = [-0.445110774625, -0.425199700817, -0.537204035189, -0.488800634411]
EDGES = {
    "tied": {
        "msp": [-0.498321169187, -0.786986042162, -0.999909208384, -0.333333333333],
        "max_logit": [-0.3, -0.3, -1.0, -0.2],
        "energy": [-0.369651049178, -0.323954476622, -1.00000907957, -0.309861228867],
        "entropy": [0.713298799915, 0.665572681899, 0.000998711894057, 1.09861228867],
        "gen": [1.74109916368, 1.6268452151, 0.762150693635, 1.72071420634],
    },
    "tiny": {
        "msp": [-0.777299861175],
        "max_logit": [-0.25],
        "energy": [-0.275192908135],
        "entropy": [0.530304254877],
        "gen": [1.67826641413],
    },
    "degenerate": {
        "msp": [-0.2, -0.2],
        "max_logit": [0.0, 0.0],
        "energy": [-0.160943791243, -0.160943791243],
        "entropy": [1.60943791243, 1.60943791243],
        "gen": [1.6651064148, 1.6651064148],
    },
}


@pytest.mark.parametrize(("name", "options", "expected"), CASES, ids=[case[0] for case in CASES])
def test_parity(name: str, options: dict[str, Any], expected: list[float]) -> None:
    score = get_score(name, **options)
    if isinstance(score, FittedScore):
        score.fit(*id_images())
    # Their ridge is another one, they clamp probabilities, and some of their arithmetic is in fp32.
    torch.testing.assert_close(
        score.compute(new_images()), torch.tensor(expected, dtype=torch.float64), rtol=5e-5, atol=2e-7
    )


@pytest.mark.parametrize("variant", SHAPED)
def test_parity_of_ash_on_activations_of_one_sign(variant: str) -> None:
    embeds = normalize(new_images().image_embeds.abs(), dim=-1)  # type: ignore[union-attr]
    score = get_score("ash", variant=variant, percentile=50.0, temperature=None)
    expected = torch.tensor(SHAPED[variant], dtype=torch.float64)
    torch.testing.assert_close(score.compute(inputs_of(embeds)), expected, rtol=1e-6, atol=0)


def test_parity_of_odin() -> None:
    weight, pixels = waves(6, 12, 0.19), waves(4, 12, 0.29).reshape(4, 3, 2, 2)
    clip = SimpleNamespace(
        get_image_features=lambda pixel_values: SimpleNamespace(pooler_output=pixel_values.flatten(1) @ weight.T)
    )
    model = SimpleNamespace(
        clip=clip,
        cosines=lambda embeds: (inputs_of(embeds).similarity, None),
        logit_scale=LOGIT_SCALE,
        image_processor=SimpleNamespace(image_std=[0.5, 0.25, 0.125]),
    )
    score = get_score("odin", logit_temperature=10.0, epsilon=0.05)
    perturbed = normalize(score.perturb(model, pixels).flatten(1) @ weight.T, dim=-1) @ label_embeds().T
    inputs = ScoreInputs(perturbed, perturbed_similarity=perturbed, logit_scale=LOGIT_SCALE)
    torch.testing.assert_close(score.compute(inputs), torch.tensor(ODIN, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", EDGES)
def test_parity_of_tied_tiny_and_degenerate_inputs(case: str) -> None:
    inputs = ScoreInputs(edge_cosines()[case], logit_scale=LOGIT_SCALE)
    options = {name: options for name, options, _ in CASES}
    for name, values in EDGES[case].items():
        expected = torch.tensor(values, dtype=torch.float64)
        found = get_score(name, **options[name]).compute(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=name)
    # MCM is the maximum softmax probability at its own temperature.
    mcm = get_score("mcm", temperature=1 / LOGIT_SCALE).compute(inputs)
    torch.testing.assert_close(mcm, torch.tensor(EDGES[case]["msp"], dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.skipif(importlib.util.find_spec("pytorch_ood") is None, reason="pytorch-ood is not installed")
def test_the_values_stored_here_are_theirs() -> None:
    program = Path(__file__).with_name("print_pytorch_ood.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.rpartition("[") for line in done.stdout.splitlines()]
    printed = {name.strip(): [float(value) for value in values.rstrip("]").split(",")] for name, _, values in lines}
    stored = {name: values for name, _, values in CASES} | {"odin": ODIN}
    stored |= {f"ash {variant}": values for variant, values in SHAPED.items()}
    stored |= {f"{case}, {name}": values for case, scores in EDGES.items() for name, values in scores.items()}
    assert printed.keys() == stored.keys()
    for name, values in stored.items():
        assert printed[name] == pytest.approx(values, rel=1e-9), name
