"""Small stand-ins for what pretraining the pocket CLIP reads: WordNet's files, a sentence encoder, classes."""

import json
from pathlib import Path

from datasets import Dataset
from hf_oodclip.training.pocket.lexicon import read_classes
from transformers import BertConfig, BertModel, BertTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ANIMAL, OBJECT = "00000001", "00000002"


def write_wordnet(folder: Path, num_others: int = 600) -> Path:
    """Write the three database files: the classes of the package below two parents, and made-up nouns."""
    folder.mkdir()
    split = read_classes()
    nouns = {ANIMAL: (["animal"], None, 5), OBJECT: (["object"], None, 6)}
    for number, (synset, name) in enumerate({**split.seen, **split.held_out}.items()):
        nouns[synset[1:]] = (
            [name.replace(" ", "_"), f"other_{LETTERS[number % 26]}"],
            (ANIMAL, OBJECT)[number % 2],
            5,
        )
    for number in range(num_others):
        word = "".join(LETTERS[number // 26**place % 26] for place in range(3))
        nouns[f"9{number:07}"] = ([f"z{word}"], OBJECT, 6)
    data, index = ["  1 This line is the licence."], ["  1 This line is the licence."]
    for offset, (words, parent, file) in nouns.items():
        pointers = f"001 @ {parent} n 0000" if parent else "000"
        listed = " ".join(f"{word} 0" for word in words)
        data.append(f'{offset} {file:02} n {len(words):02x} {listed} {pointers} | a thing called {words[0]}; "x"  ')
        index += [f"{word.lower()} n 1 1 @ 1 {len(word) % 4} {offset}  " for word in words]
    (folder / "data.noun").write_text("\n".join(data) + "\n", encoding="utf-8")
    (folder / "index.noun").write_text("\n".join(index) + "\n", encoding="utf-8")
    adjectives = [f"q{LETTERS[place]}ish a 1 0 1 {place % 3} 00000009  " for place in range(26)]
    (folder / "index.adj").write_text("\n".join(["  1 licence", *adjectives]) + "\n", encoding="utf-8")
    return folder


def write_sentence_encoder(folder: Path) -> Path:
    """Write a random BERT that reads letters."""
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=96, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_images(folder: Path, embedded: Dataset, rows: range) -> Path:
    """Write some of the embedded images as a parquet file."""
    path = folder / f"images-{rows.start}.parquet"
    embedded.select(rows).select_columns(["image", "label"]).to_parquet(path)
    return path


def write_classes(path: Path, seen: list[str], held_out: list[str]) -> Path:
    """Write a file of classes: some of the package's own."""
    split = read_classes()
    both = {name: synset for synset, name in {**split.seen, **split.held_out}.items()}
    record = {
        "seen": {both[name]: name for name in seen},
        "held_out": {both[name]: name for name in held_out},
        "abstract_parents": [],
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    return path
