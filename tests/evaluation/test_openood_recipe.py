"""The code of OPENOOD.md, run against a stand-in of what OpenOOD's evaluator does with it."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_oodclip.evaluation import benchmark
from PIL import Image

from hf_oodclip import OODCLIPForImageClassification, get_score

RECIPE = (Path(__file__).parents[2] / "evaluation" / "OPENOOD.md").read_text(encoding="utf-8")
NAMES = ("acorn", "desk", "police van", "tabby cat")
WORDS = ("gravel", "fog", "tax law", "handwriting")


class _BasePostprocessor:
    """As far as our recipe leaves it as it is."""

    def __init__(self, config):
        self.config = config

    def setup(self, net, id_loader_dict, ood_loader_dict):
        pass

    def inference(self, net, data_loader, progress=True):
        found = [(*self.postprocess(net, batch["data"].cuda()), batch["label"]) for batch in data_loader]
        return tuple(torch.cat(parts).numpy() for parts in zip(*found, strict=True))


class _Evaluator:
    """Loads, sets up, asks for logits and for confidences, in OpenOOD's order and with its demands."""

    images: dict

    def __init__(
        self, net, id_name, data_root="./data", config_root="./configs", preprocessor=None, postprocessor_name=None,
        postprocessor=None, batch_size=200, shuffle=False, num_workers=4,
    ):  # fmt: skip
        if not isinstance(postprocessor, _BasePostprocessor):
            raise TypeError("postprocessor should inherit BasePostprocessor in OpenOOD")
        assert id_name == "imagenet" and (data_root, batch_size) == ("data", 64)
        assert preprocessor.transforms[-1].mean and preprocessor.transforms[-1].std

        def loader(images):
            for start in range(0, len(images), 3):
                part = images[start : start + 3]
                yield {"data": torch.stack([preprocessor(image) for image, _ in part]),
                       "label": torch.tensor([label for _, label in part])}  # fmt: skip

        self.loaders = {name: list(loader(images)) for name, images in self.images.items()}
        postprocessor.setup(net, {"train": self.loaders["train"], "test": self.loaders["id"]}, {})
        self.net, self.postprocessor = net, postprocessor
        if postprocessor.APS_mode and not postprocessor.hyperparam_search_done:
            raise AssertionError("it would search for hyper-parameters")
        self.net.eval()

    def eval_ood(self, fsood=False, progress=True):
        found = {
            name: self.postprocessor.inference(self.net, self.loaders[name], progress)
            for name in ("id", "near", "far")
        }
        with torch.no_grad():
            logits = [self.net(batch["data"].cuda()).argmax(1) for batch in self.loaders["id"]]
        found["net"] = torch.cat(logits).numpy()
        return found


class _Transform:
    def __init__(self, *arguments, interpolation=None):
        self.arguments = arguments


class _Resize(_Transform):
    def __call__(self, image):
        scale = self.arguments[0] / min(image.size)
        return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


class _CenterCrop(_Transform):
    def __call__(self, image):
        size = self.arguments[0]
        left, top = ((side - size) // 2 for side in image.size)
        return image.crop((left, top, left + size, top + size))


class _ToTensor(_Transform):
    def __call__(self, image):
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


class _Normalize(_Transform):
    @property
    def mean(self):
        return self.arguments[0]

    @property
    def std(self):
        return self.arguments[1]

    def __call__(self, pixels):
        return (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


class _Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, value):
        for transform in self.transforms:
            value = transform(value)
        return value


@pytest.fixture
def libraries(monkeypatch):
    """OpenOOD, torchvision and a GPU, as far as the recipe uses them."""
    contents = {
        "openood": {},
        "openood.evaluation_api": {"Evaluator": _Evaluator},
        "openood.postprocessors": {"BasePostprocessor": _BasePostprocessor},
        "torchvision": {},
        "torchvision.transforms": {
            "Resize": _Resize, "CenterCrop": _CenterCrop, "ToTensor": _ToTensor, "Normalize": _Normalize,
            "Compose": _Compose, "InterpolationMode": types.SimpleNamespace(BICUBIC="bicubic"),
        },
    }  # fmt: skip
    modules = {name: types.ModuleType(name) for name in contents}
    for name, values in contents.items():
        vars(modules[name]).update(values)
        monkeypatch.setitem(sys.modules, name, modules[name])
    modules["torchvision"].transforms = modules["torchvision.transforms"]
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)


@pytest.mark.parametrize("score", ["neglabel", "mcm", "knn"])
def test_recipe_gives_what_the_model_says(score, libraries, tiny_clip, real_images, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", RECIPE, flags=re.DOTALL | re.MULTILINE)
    labels = types.SimpleNamespace(labels=list(NAMES))
    monkeypatch.setattr(benchmark, "load_benchmark", {"imagenet1k-openood": labels}.__getitem__)
    images = {name: [image.convert("RGB") for image in found] for name, found in real_images.items()}
    train = images["id"][20:]
    sets = {"train": train, "id": images["id"][:8], "near": images["near"], "far": images["far"]}
    _Evaluator.images = {name: [(image, place % 4) for place, image in enumerate(each)] for name, each in sets.items()}
    for old, new in {
        '"openai/clip-vit-base-patch16"': repr(str(tiny_clip)),
        'negatives="neglabel"': f"negatives={WORDS!r}",
        'ScorePostprocessor("neglabel")': f"ScorePostprocessor({score!r})",
        "print(evaluator.eval_ood())": "found = evaluator.eval_ood()",
    }.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    run = {}
    exec(compile(code, "OPENOOD.md", "exec"), run)

    model = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES, negatives=WORDS).eval()
    expected = get_score(score)
    if expected.requires_fit:
        expected = model.fit_score(train, [place % 4 for place in range(len(train))], score)
    for name in ("id", "near", "far"):
        _, confidences, truth = run["found"][name]
        ours = model.ood_scores(sets[name], [expected])[expected.key]
        # Confidence is larger for ID images, and the two ways to resize differ a little.
        assert confidences == pytest.approx(-ours.numpy(), abs=2e-3)
        assert np.corrcoef(confidences, -ours.numpy())[0, 1] > 0.999
        assert truth.tolist() == [place % 4 for place in range(len(sets[name]))]
    assert run["found"]["id"][0].tolist() == run["found"]["net"].tolist()


def test_labels_are_in_openoods_order():
    """OpenOOD numbers the classes of ImageNet by sorted WordNet ids."""
    path = Path(__file__).parents[2] / "evaluation" / "classes" / "imagenet1k.txt"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    ids = [line.split("\t")[0] for line in lines]
    assert len(ids) == 1000 and ids == sorted(ids)
    assert benchmark.load_benchmark("imagenet1k-openood").labels == [line.split("\t")[1] for line in lines]
