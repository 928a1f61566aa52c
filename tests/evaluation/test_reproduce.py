"""REPRODUCE.md: its commands exist and fit together, and its published figures are those of the benchmark files."""

import contextlib
import functools
import math
import re
import shlex
from pathlib import Path

import pytest
import typer
from hf_oodclip.evaluation import efficiency, evaluate, protocols
from hf_oodclip.evaluation.benchmark import list_benchmarks, load_benchmark
from hf_oodclip.evaluation.class_lists import read_class_file
from hf_oodclip.training.data import load_image_set
from hf_oodclip.training.recipe import list_recipes, load_recipe
from hf_oodclip.training.train import parse_arguments
from miniature_runs import small_run
from typer.testing import CliRunner

from hf_oodclip import NFTConfig, get_score

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "evaluation" / "REPRODUCE.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
PROGRAMS = {"evaluate": evaluate, "protocols": protocols, "efficiency": efficiency}


def expanded(block):
    """The commands of a block of bash, loops written out."""
    block = re.sub(
        r"^for (\w+) in (.*?); do\n(.*?)^done\n",
        lambda loop: "".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()),
        block,
        flags=re.DOTALL | re.MULTILINE,
    )
    return [shlex.split(line) for line in block.splitlines()]


def commands():
    """Program and arguments of every command, in their order."""
    for language, block in BLOCKS:
        for words in expanded(block) if language == "bash" else ():
            launcher, file = (words[:2], words[2]) if words[0] == "accelerate" else (words[:1], words[1])
            assert launcher in (["accelerate", "launch"], ["python"]), words
            if file != "-c":
                assert (ROOT / file).is_file(), words
                arguments = words[len(launcher) + 1 :]
                assert not [each for each in arguments if "$" in each], words
                yield Path(file).stem, arguments


def application(name):
    app = typer.Typer(add_completion=False)
    app.command()(PROGRAMS[name].main)
    return app


@functools.cache
def program(name):
    return typer.main.get_command(application(name))


# Reading all the files takes a while.
names_of_benchmarks = functools.cache(list_benchmarks)
benchmark_of = functools.cache(load_benchmark)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The reader's folder with ImageNet, PACS and VLCS in miniature, after the blocks that prepare the data."""
    folder = tmp_path_factory.mktemp("reader")
    classes = read_class_file(ROOT / "evaluation" / "classes" / "imagenet1k.txt")
    images = [f"imagenet/images/train/{name}/{name}_1.JPEG" for name in classes.ids]
    for dataset, domains in {
        "PACS": ("art_painting", "cartoon", "photo", "sketch"),
        "VLCS": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    }.items():
        names = read_class_file(ROOT / "evaluation" / "classes" / f"{dataset.lower()}.txt").ids
        images += [f"{dataset}-train/{domain}/{name}/1.jpg" for domain in domains for name in names]
    for image in images:
        (folder / "DATA" / image).parent.mkdir(parents=True)
        (folder / "DATA" / image).write_bytes(image.encode())
    with contextlib.chdir(folder):
        for language, block in BLOCKS:
            if language == "python":
                exec(block, {})
            elif block.startswith("python -c"):
                _, _, code, redirect, file = shlex.split(block)
                assert redirect == ">"
                with Path(file).open("w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
                    exec(code, {})
    return folder


def test_prepared_images_have_names_that_people_use(reader, monkeypatch):
    monkeypatch.chdir(reader)
    names = Path("imagenet-names.txt").read_text(encoding="utf-8").splitlines()
    assert names == load_benchmark("imagenet1k-four").labels
    chosen = Path("setup1-names.txt").read_text(encoding="utf-8").splitlines()
    assert chosen == load_benchmark("setup1-imagenet46").labels
    images = load_image_set("DATA/setup1-train", label_names=chosen)
    assert (len(images), images.label_names) == (400, chosen)
    ids = read_class_file(ROOT / "evaluation" / "classes" / "imagenet1k.txt")
    by_id = dict(zip(ids.ids, ids.names, strict=True))
    for row, label in enumerate(images.labels):
        assert by_id[Path(images.images[row]["image"]["path"]).parent.name] == chosen[label]
    images = load_image_set("DATA/PACS-train-without/photo")
    assert images.label_names == load_benchmark("setup2-pacs-photo").labels and len(images) == 3 * 7
    assert not [each for each in Path("DATA/VLCS-train-without/SUN09").rglob("*.jpg") if each.name.startswith("SUN09")]


def test_commands_exist_and_each_finds_what_those_before_it_wrote(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(reader)
    adapters, runs, used = set(), {}, set()
    for name, arguments in commands():
        if name == "train":
            options, overrides = parse_arguments(arguments)
            recipe = load_recipe(options.recipe, overrides)
            assert options.recipe in list_recipes() and not options.resume
            classes = [each for each in Path(recipe.dataset).iterdir() if each.is_dir()]
            assert recipe.label_names is None or len(recipe.label_names) == len(classes)
            assert str(options.output_dir) not in adapters
            adapters.add(str(options.output_dir))
            continue
        options = program(name).make_context(name, list(arguments)).params
        if name != "protocols":
            sources = options["adapter"] or []
            assert {part for source in sources for part in source.split("+")} <= adapters, arguments
        if name == "evaluate":
            assert options["benchmark"] in names_of_benchmarks() and options["root"] == Path("DATA")
            for score in options["scores"].split(","):
                get_score(score)
            for source in sources or [None]:
                folder = options["output_dir"]
                if len(sources) > 1:
                    folder /= "+".join(Path(part).name for part in source.split("+"))
                assert str(folder) not in runs
                benchmark = benchmark_of(options["benchmark"])
                sets = {each.name: each.role for each in benchmark.sets}
                other = {"id_filter": options["id_filter"], "scores": options["scores"].split(",")}
                runs[str(folder)] = small_run(
                    tmp_path, 0.9, benchmark=benchmark.name, adapter=source, sets=sets, folder=folder, **other
                )
        if name == "protocols":
            folders = {each.rpartition("=")[2] for each in options["runs"]}
            assert folders <= runs.keys(), arguments
            used |= folders
            # Paired differences need images, which these runs have not.
            plain = arguments
            if options["compare"]:
                place = arguments.index("--compare")
                plain = arguments[:place] + arguments[place + 3 :]
            monkeypatch.chdir(tmp_path)
            done = CliRunner().invoke(application(name), plain)
            monkeypatch.chdir(reader)
            assert done.exit_code == 0, (arguments, done.stderr)
            methods = {line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")}
            assert set(options["compare"] or ()) <= methods
    assert len(used) > 20 and len(adapters) > 20
    # Each table comes out as its protocol.
    for table, expected in {
        "table-1": "KR-NFT",
        "table-2": "Base and unseen classes",
        "table-3": "Unseen styles",
        "table-4": "adapter on top of adapter",
        "table-5": "mean of near",
        "setup1/summary": "detection and robust accuracy (id_filter correct)",
        "setup2/pacs": "SETUP-II, PACS",
    }.items():
        assert expected in (tmp_path / "runs" / table / "protocols.md").read_text(encoding="utf-8")


def test_published_figures_are_those_of_the_benchmark_files():
    published = [each for name in names_of_benchmarks() for each in benchmark_of(name).published]
    means = {}
    for each in published:
        if each.set in ("near", "far"):
            means.setdefault((each.method, each.set), {})[each.metric == "auroc"] = f"{each.value:.2f}"
    pairs = {f"{found[False]} / {found[True]}" for found in means.values()}
    assert set(re.findall(r"\d\d\.\d\d / \d\d\.\d\d", " ".join(TEXT.split()))) == pairs
    flat = " ".join(TEXT.split())
    for (method, _), found in means.items():
        if "λ" not in method:
            assert f"{method} {found[False]} / {found[True]}" in flat
    assert "NegLabel has FPR95 35.59" in flat and any(each.value == 35.59 for each in published)


def test_parameters_of_the_released_settings():
    for hidden, count in ((8, "36,896"), (64, "266,496")):
        shapes = NFTConfig(hidden_size=hidden).parameter_shapes(512).values()
        total = sum(map(math.prod, shapes))
        assert f"{total:,}" == count and count in TEXT
