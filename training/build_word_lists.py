"""Rebuild the WordNet noun and adjective lists that ship inside the package.

Example:
    apt-get install wordnet-base
    python training/build_word_lists.py --wordnet /usr/share/wordnet
"""

import lzma
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

PARTS_OF_SPEECH: dict[str, str] = {"noun": "nouns", "adj": "adjectives"}
# fmt: off
NOUN_FILES = [
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event",
    "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant",
    "possession", "process", "quantity", "relation", "shape", "state", "substance", "time",
]
# fmt: on
# Field 2 of a data line is a number that lexnames(5WN) names; 2 and 29 to 43 are adverbs and verbs.
LEXICOGRAPHER_FILES: dict[int, str] = {0: "adj.all", 1: "adj.pert", 44: "adj.ppl"} | {
    number: f"noun.{name}" for number, name in enumerate(NOUN_FILES, start=3)
}
ADJECTIVE_MARKER = re.compile(r"\((?:a|p|ip)\)$")
DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "hf_oodclip" / "assets" / "words"

README = """# Word lists

Every noun and every adjective of WordNet 3.0, the pool from which negative words are mined.

| file | words | single-word | with a space | bytes |
| --- | --- | --- | --- | --- |
{summary}

One word a line, UTF-8 (NFC), xz: `word<TAB>files<TAB>place`, where `files` are the WordNet lexicographer
files that list the word, comma-joined and sorted, and `place` is `first` for the first lemma of some synset,
else `other` (`aardvark<TAB>noun.animal<TAB>first`). Lemma case is WordNet's, underscores are spaces,
adjective markers `(a)`, `(p)`, `(ip)` are gone. Words are unique within a list (case counts)
and sorted by code point. The second column lets a miner leave files out (CSP: noun.person, noun.quantity,
noun.group, adj.pert); a space in the word tells multi-word lemmas.

## Words in each lexicographer file
A word in several files counts in each.

| file | words | single-word |
| --- | --- | --- |
{files}

## Against the lists of the papers
- **KR-NFT / OpenOOD-VLM** publish one text file for each part of speech: these lists with underscores for
  spaces, less the 3 nouns and 12 adjectives that begin with `.` or `'`. Checked by the exact number of
  characters of both files and by their opening pages, not word by word.
- **NegLabel** uses about 58.5k nouns and 13.1k adjectives. That there are about as many single-word nouns
  here is chance: its published selection for ImageNet-1k is full of multi-word lemmas ("yellow clintonia").
  All of 101 words picked by hand from that selection are the *first* lemma of a synset in lower case, the
  way NLTK's `synset.name()` spells it; by chance 57 % of the nouns would be. So the `neglabel` method mines
  the `first` words: {first_nouns:,} nouns and {first_adjectives:,} adjectives; the rest of the gap is
  unexplained.

## Source and licence
WordNet 3.0, Princeton University, as packaged in Debian's `wordnet-base` 1:3.0-37 (`data.noun`, `data.adj`).
Licence: `LICENSE-wordnet.txt` in this folder. Rebuild (the same bytes each time with one version of liblzma):

```
apt-get install wordnet-base
python training/build_word_lists.py --wordnet /usr/share/wordnet
```

This file is written by that script.
"""


def read_synsets(path: Path) -> list[tuple[str, list[str]]]:
    """Return `(lexicographer file, lemmas)` for every synset of a WordNet `data.*` file."""
    synsets: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence at the head of the file is indented, data lines are not
            continue
        fields = line.split(" ")
        lemmas = [ADJECTIVE_MARKER.sub("", lemma) for lemma in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        words = [unicodedata.normalize("NFC", lemma.replace("_", " ")) for lemma in lemmas]
        synsets.append((LEXICOGRAPHER_FILES[int(fields[1])], words))
    return synsets


def collect_words(synsets: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
    """Return each word once with the sorted lexicographer files that list it, words in code-point order."""
    files_of_word: dict[str, set[str]] = {}
    for lexicographer_file, words in synsets:
        for word in words:
            files_of_word.setdefault(word, set()).add(lexicographer_file)
    return {word: sorted(files_of_word[word]) for word in sorted(files_of_word)}


def read_licence(path: Path) -> str:
    """Return the WordNet licence that heads every `data.*` file, without its line numbers."""
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("  ")]
    return "\n".join(re.sub(r"^ +\d+ ?", "", line).rstrip() for line in header).strip() + "\n"


def main(
    wordnet: Annotated[Path, typer.Option(help="Folder with WordNet 3.0's data.noun and data.adj.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = DEFAULT_OUTPUT,
) -> None:
    """Write both word lists, their README and the WordNet licence."""
    missing = [name for name in ("data.noun", "data.adj") if not (wordnet / name).is_file()]
    if missing:
        raise typer.BadParameter(
            f"{wordnet} holds no {' and no '.join(missing)}. Give the folder of the WordNet 3.0 database "
            "files, on Debian /usr/share/wordnet after `apt-get install wordnet-base`.",
            param_hint="--wordnet",
        )
    output.mkdir(parents=True, exist_ok=True)
    summary: list[str] = []
    file_rows: list[str] = []
    first_lemmas: dict[str, int] = {}
    for suffix, plural in PARTS_OF_SPEECH.items():
        synsets = read_synsets(wordnet / f"data.{suffix}")
        words = collect_words(synsets)
        first_lemmas[plural] = len({lemmas[0] for _, lemmas in synsets})
        first = {lemmas[0] for _, lemmas in synsets}
        places = {word: "first" if word in first else "other" for word in words}
        text = "".join(f"{word}\t{','.join(files)}\t{places[word]}\n" for word, files in words.items())
        packed = lzma.compress(text.encode("utf-8"), check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME)
        target = output / f"wordnet_{plural}.txt.xz"
        target.write_bytes(packed)
        single = [word for word in words if " " not in word]
        spaced = len(words) - len(single)
        summary.append(f"| `{target.name}` | {len(words)} | {len(single)} | {spaced} | {len(packed)} |")
        per_file = Counter(name for files in words.values() for name in files)
        single_per_file = Counter(name for word in single for name in words[word])
        file_rows += [f"| {name} | {per_file[name]} | {single_per_file[name]} |" for name in sorted(per_file)]
        typer.echo(f"{target.name}: {len(words)} words, {len(single)} single-word, {len(packed)} bytes")
    readme = README.format(
        summary="\n".join(summary),
        files="\n".join(file_rows),
        first_nouns=first_lemmas["nouns"],
        first_adjectives=first_lemmas["adjectives"],
    )
    (output / "README.md").write_text(readme, encoding="utf-8")
    (output / "LICENSE-wordnet.txt").write_text(read_licence(wordnet / "data.noun"), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
