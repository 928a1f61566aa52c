"""A small byte-level BPE tokenizer of CLIP's kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

__all__ = ["read_tokenizer", "train_tokenizer"]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int = 32) -> CLIPTokenizer:
    """Return a tokenizer that merges what is frequent in the texts, and can spell every other byte.

    Args:
        texts: What to learn from.
        vocab_size: Most tokens.
        max_length: Positions of the text tower.
    """
    alphabet = sorted(ByteLevel.alphabet())
    # CLIPTokenizer's own training would leave out the bytes that it has not met at the end of a word.
    tokens = [*alphabet, *(letter + END_OF_WORD for letter in alphabet)]
    untrained = CLIPTokenizer(vocab={EOS: 0, BOS: 1}, merges=[])
    # Named beforehand, letters keep their order, by which merges of equal frequency are ranked: the same every time.
    trained = untrained.train_new_from_iterator(
        texts, vocab_size, new_special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    vocab = {token: place for place, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for merge in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]:
        first, second = merge if isinstance(merge, list) else merge.split(" ")
        # A word that merges cannot spell from bytes alone would be lost.
        if first in vocab and second in vocab and len(vocab) < vocab_size - 2:
            merges.append((first, second))
            vocab.setdefault(first + second, len(vocab))
    vocab |= {BOS: len(vocab), EOS: len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def read_tokenizer(folder: Path, max_length: int = 32) -> CLIPTokenizer:
    """Return the tokenizer that was saved to a folder, as it was trained: without traces of use."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=max_length
    )
