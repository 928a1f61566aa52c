"""Text embeddings on disk: found again, never stale, never in the way."""

import copy
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from hf_oodclip import TextEncoder, encoders, text_cache
from hf_oodclip.text_bank import MIN_CACHED_PROMPTS
from hf_oodclip.text_cache import cache_folder, cached_embeds

TEXTS = [f"thing {number}" for number in range(300)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own; returns where its files will lie."""
    monkeypatch.setenv("HF_OODCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text_embeds"


@pytest.fixture(scope="module")
def clip(tiny_clip: str) -> CLIPModel:
    return CLIPModel.from_pretrained(tiny_clip).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_clip: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_clip)


@pytest.fixture
def calls(clip: CLIPModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each forward pass of the text tower was given."""
    return spy_on(clip, monkeypatch)


def spy_on(clip: CLIPModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    original = clip.get_text_features

    def spy(input_ids: Tensor, **kwargs: Any) -> Any:
        seen.append(len(input_ids))
        return original(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(clip, "get_text_features", spy)
    return seen


def assert_equal_embeds(embeds: Tensor, expected: Tensor) -> None:
    """Check embeddings computed twice: where a matrix lies in memory decides the last bit."""
    torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-6)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


# ---- found again -----------------------------------------------------------------------------------


def test_the_second_time_no_text_is_embedded(
    clip: CLIPModel, tokenizer: Any, calls: list[int], folder: Path, warned: list[str]
) -> None:
    first = TextEncoder(clip, tokenizer).embed(TEXTS)
    assert sum(calls) == 300
    assert [file.suffix for file in files_of(folder)] == [".safetensors"]
    calls.clear()
    # Another encoder, another batch size, as in another process.
    second = TextEncoder(clip, tokenizer, batch_size=64).embed(list(TEXTS))
    assert calls == []
    assert torch.equal(first, second)
    assert warned == []


def test_what_is_stored_equals_what_is_computed(clip: CLIPModel, tokenizer: Any) -> None:
    TextEncoder(clip, tokenizer).embed(TEXTS, "tip7", "unnormalized")
    stored = TextEncoder(clip, tokenizer).embed(TEXTS, "tip7", "unnormalized")
    uncached = TextEncoder(clip, tokenizer, cache=False)
    assert_equal_embeds(stored, uncached.embed(TEXTS, "tip7", "unnormalized"))


def test_fp64_comes_back_as_fp64(clip: CLIPModel, tokenizer: Any) -> None:
    wide = copy.deepcopy(clip).double()
    computed, stored = (TextEncoder(wide, tokenizer).embed(TEXTS) for _ in range(2))
    assert stored.dtype == torch.float64
    assert torch.equal(stored, computed)


def test_short_lists_and_switched_off_leave_no_file(clip: CLIPModel, tokenizer: Any, folder: Path) -> None:
    TextEncoder(clip, tokenizer).embed(TEXTS[: MIN_CACHED_PROMPTS - 1])
    TextEncoder(clip, tokenizer, cache=False).embed(TEXTS)
    assert files_of(folder) == []
    # Templates count: 2 x 128 prompts are worth a file.
    TextEncoder(clip, tokenizer).embed(TEXTS[: MIN_CACHED_PROMPTS // 2], ["{}", "a {}"])
    assert len(files_of(folder)) == 1


def test_the_folder_is_that_of_the_variable_else_in_hf_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "text_embeds"
    monkeypatch.delenv("HF_OODCLIP_CACHE")
    monkeypatch.setattr(text_cache, "HF_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "hf_oodclip" / "text_embeds"


def test_what_cannot_be_computed_is_not_stored(folder: Path) -> None:
    def fail() -> Tensor:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cached_embeds("key", fail)
    assert files_of(folder) == []


# ---- never stale -----------------------------------------------------------------------------------


CHANGES: dict[str, Callable[[TextEncoder], Any]] = {
    "other texts": lambda encoder: encoder.embed([*TEXTS[:-1], "other"]),
    "fewer texts": lambda encoder: encoder.embed(TEXTS[:-1]),
    "another order": lambda encoder: encoder.embed(TEXTS[::-1]),
    "another template": lambda encoder: encoder.embed(TEXTS, "mcm"),
    "more templates": lambda encoder: encoder.embed(TEXTS, ["a photo of a {}.", "a photo of a {}."]),
    "another average": lambda encoder: encoder.embed(TEXTS, average="raw"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_another_question_gets_another_file(
    change: Callable[[TextEncoder], Any], clip: CLIPModel, tokenizer: Any, folder: Path, calls: list[int]
) -> None:
    TextEncoder(clip, tokenizer).embed(TEXTS)
    calls.clear()
    answer = change(TextEncoder(clip, tokenizer))
    assert calls
    assert len(files_of(folder)) == 2
    assert_equal_embeds(answer, change(TextEncoder(clip, tokenizer, cache=False)))


def test_texts_regrouped_over_templates_are_another_question() -> None:
    keys = {
        text_cache.embeds_key(tower, tokenizer, grouped, average)
        for tower, tokenizer in (("tower", "one"), ("tower", "other"), ("other", "one"))
        for grouped in ([["a b", "c"]], [["a b"], ["c"]], [["c", "a b"]], [["a", "b c"]], [["a b1|c"]])
        for average in ("normalized", "raw")
    }
    assert len(keys) == 30
    assert text_cache.embeds_key("t", "k", [["a"]], "raw") == text_cache.embeds_key("t", "k", [["a"]], "raw")


def test_a_tokenizer_is_known_by_what_it_does_not_by_what_it_was_asked(tokenizer: Any) -> None:
    one, same, other = (copy.deepcopy(tokenizer) for _ in range(3))
    same(["a", "a b c"], padding=True, truncation=True, max_length=4)
    other.add_tokens(["acorn"])
    first, again, third = (encoders.tokenizer_fingerprint(each) for each in (one, same, other))
    assert first == again != third


@torch.no_grad()
def nudge_layer(clip: CLIPModel) -> None:
    weight = clip.text_model.encoder.layers[1].mlp.fc2.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


@torch.no_grad()
def nudge_projection(clip: CLIPModel) -> None:
    weight = clip.text_projection.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def change_dtype(clip: CLIPModel) -> None:
    clip.bfloat16()


def change_activation(clip: CLIPModel) -> None:
    clip.config.text_config.hidden_act = "gelu"


TOWER_CHANGES = [nudge_layer, nudge_projection, change_dtype, change_activation]


@pytest.mark.parametrize("change", TOWER_CHANGES)
def test_the_fingerprint_follows_the_text_tower(
    change: Callable[[CLIPModel], None], clip: CLIPModel, tokenizer: Any
) -> None:
    changed = copy.deepcopy(clip)
    assert TextEncoder(changed, tokenizer).fingerprint == TextEncoder(clip, tokenizer).fingerprint
    change(changed)
    assert TextEncoder(changed, tokenizer).fingerprint != TextEncoder(clip, tokenizer).fingerprint


def test_the_fingerprint_leaves_out_the_vision_tower(clip: CLIPModel, tokenizer: Any) -> None:
    changed = copy.deepcopy(clip)
    with torch.no_grad():
        changed.visual_projection.weight.zero_()
    assert TextEncoder(changed, tokenizer).fingerprint == TextEncoder(clip, tokenizer).fingerprint


def test_weights_that_changed_in_place_are_noticed_by_a_new_encoder(clip: CLIPModel, tokenizer: Any) -> None:
    trained = copy.deepcopy(clip)
    before = TextEncoder(trained, tokenizer).embed(TEXTS)
    with torch.no_grad():
        trained.text_projection.weight.copy_(trained.text_projection.weight.flip(0))
    after = TextEncoder(trained, tokenizer).embed(TEXTS)
    assert (after - before).abs().max() > 0.1
    assert_equal_embeds(after, TextEncoder(trained, tokenizer, cache=False).embed(TEXTS))


@pytest.mark.parametrize("cache", [True, False])
def test_what_a_caller_does_to_an_answer_spoils_no_later_one(cache: bool, clip: CLIPModel, tokenizer: Any) -> None:
    encoder = TextEncoder(clip, tokenizer, cache=cache)
    for _ in range(2):
        answer = encoder.embed(TEXTS)
        expected = answer.clone()
        answer.zero_()
        assert_equal_embeds(encoder.embed(TEXTS), expected)


@pytest.mark.parametrize("cache", [True, False])
def test_one_encoder_answers_every_question_as_a_new_one_does(cache: bool, clip: CLIPModel, tokenizer: Any) -> None:
    encoder = TextEncoder(clip, tokenizer, cache=cache)
    questions: list[tuple[Any, ...]] = [
        (TEXTS,),
        (TEXTS[::-1],),
        (["thing 7", "thing 7", "thing 3"],),
        (["thing 7", "new", "thing 3"],),
        (TEXTS, "mcm"),
        (TEXTS, "photo", "unnormalized"),
        (TEXTS, ["a photo of a {}.", "{}"]),
        (TEXTS[5:290],),
        (TEXTS,),
    ]
    for question in questions:
        assert_equal_embeds(encoder.embed(*question), TextEncoder(clip, tokenizer, cache=False).embed(*question))


@pytest.mark.parametrize("target", ["q_proj", "text_projection"])
def test_lora_on_the_text_tower_is_noticed_on_and_off(target: str, clip: CLIPModel, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=[target], init_lora_weights=False)
    peft_model = get_peft_model(copy.deepcopy(clip), config).eval()

    def embed(cache: bool) -> Tensor:
        return TextEncoder(peft_model.get_base_model(), tokenizer, cache=cache).embed(TEXTS)

    adapted = embed(cache=True)
    assert_equal_embeds(adapted, embed(cache=False))
    with peft_model.disable_adapter():
        plain = embed(cache=True)
        assert_equal_embeds(plain, embed(cache=False))
    assert (plain - adapted).abs().max() > 1e-3


def test_what_is_embedded_under_autocast_is_not_taken_for_full_precision(clip: CLIPModel, tokenizer: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        TextEncoder(clip, tokenizer).embed(TEXTS)
    full = TextEncoder(clip, tokenizer, cache=False).embed(TEXTS)
    assert_equal_embeds(TextEncoder(clip, tokenizer).embed(TEXTS), full)


# ---- damage ------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def truncate_to_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1234] ^= 1
    file.write_bytes(content)


def write_a_pickle(file: Path) -> None:
    torch.save({"embeds": torch.zeros(300, 24)}, file)


def write_other_tensors(file: Path) -> None:
    save_file({"weights": torch.zeros(2)}, file)


def write_embeds_without_a_checksum(file: Path) -> None:
    save_file({"embeds": torch.zeros(300, 24)}, file)


def write_embeds_of_another_dtype(file: Path) -> None:
    save_file({"embeds": torch.zeros(300, 24, dtype=torch.bfloat16)}, file, metadata={"checksum": "0"})


DAMAGES = [
    truncate,
    truncate_to_the_header,
    empty,
    flip_a_byte,
    write_a_pickle,
    write_other_tensors,
    write_embeds_without_a_checksum,
    write_embeds_of_another_dtype,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_rebuilt_with_a_warning(
    damage: Callable[[Path], None], clip: CLIPModel, tokenizer: Any, folder: Path, warned: list[str], calls: list[int]
) -> None:
    expected = TextEncoder(clip, tokenizer).embed(TEXTS)
    (file,) = files_of(folder)
    damage(file)
    rebuilt = TextEncoder(clip, tokenizer).embed(TEXTS)
    assert_equal_embeds(rebuilt, expected)
    assert sum(calls) == 600
    assert len(warned) == 1
    assert str(file) in warned[0]
    assert "rebuilt" in warned[0]
    assert files_of(folder) == [file]
    assert torch.equal(TextEncoder(clip, tokenizer).embed(TEXTS), rebuilt)
    assert sum(calls) == 600
    assert len(warned) == 1


def test_a_flipped_bit_anywhere_is_noticed(folder: Path) -> None:
    embeds = torch.arange(12.0).reshape(3, 4)
    cached_embeds("key", lambda: embeds)
    (file,) = files_of(folder)
    intact = file.read_bytes()
    computed = []

    def compute() -> Tensor:
        computed.append(position)
        return embeds

    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        assert torch.equal(cached_embeds("key", compute), embeds)
    # A flipped space of the header's padding, or one in the name of the other metadata, harms nothing.
    assert len(computed) >= len(intact) - 8


# ---- places that cannot be written -------------------------------------------------------------------


def expect_work_and_a_warning(clip: CLIPModel, tokenizer: Any, warned: list[str], place: Path) -> None:
    expected = TextEncoder(clip, tokenizer, cache=False).embed(TEXTS)
    assert_equal_embeds(TextEncoder(clip, tokenizer).embed(TEXTS), expected)
    assert warned
    assert str(place) in warned[-1]
    assert "HF_OODCLIP_CACHE" in warned[-1]


def test_a_cache_that_is_a_file_is_done_without(
    clip: CLIPModel, tokenizer: Any, tmp_path: Path, folder: Path, warned: list[str]
) -> None:
    (tmp_path / "cache").write_text("in the way")
    expect_work_and_a_warning(clip, tokenizer, warned, folder)
    assert (tmp_path / "cache").read_text() == "in the way"


@pytest.mark.parametrize("method", ["mkdir", "replace"])
def test_a_folder_that_cannot_be_written_is_done_without(
    method: str,
    clip: CLIPModel,
    tokenizer: Any,
    folder: Path,
    warned: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    expect_work_and_a_warning(clip, tokenizer, warned, folder)
    # Nothing half written stays.
    assert files_of(folder) == []


@pytest.mark.skipif(os.name != "posix", reason="limits are of POSIX")
def test_a_full_disk_is_done_without(clip: CLIPModel, tokenizer: Any, folder: Path, warned: list[str]) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        expect_work_and_a_warning(clip, tokenizer, warned, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_of(folder) == []


def test_a_file_that_cannot_be_read_is_done_without(
    clip: CLIPModel, tokenizer: Any, folder: Path, warned: list[str]
) -> None:
    expected = TextEncoder(clip, tokenizer).embed(TEXTS)
    (file,) = files_of(folder)
    file.unlink()
    file.mkdir()
    assert_equal_embeds(TextEncoder(clip, tokenizer).embed(TEXTS), expected)
    assert any(str(file) in message for message in warned)
    assert files_of(folder) == [file]


@pytest.mark.skipif(os.name != "posix", reason="file modes are of POSIX")
def test_files_are_as_readable_as_any_other_file_of_the_user(folder: Path, tmp_path: Path) -> None:
    # HF_HOME is often shared by a group: a cache only its writer can read would warn all the others.
    cached_embeds("key", lambda: torch.zeros(3, 4))
    (file,) = files_of(folder)
    (tmp_path / "ordinary").write_text("")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


# ---- several processes ---------------------------------------------------------------------------------


def test_a_file_is_moved_to_its_place_whole_whoever_writes_it_meanwhile(
    folder: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    move = os.replace

    def interrupted(source: Any, target: Any) -> None:
        assert not Path(target).exists()
        monkeypatch.undo()
        monkeypatch.setenv("HF_OODCLIP_CACHE", str(folder.parent))
        assert torch.equal(load_file(source)["embeds"], torch.ones(3, 4))
        # Another process finds nothing, computes and writes the same.
        assert torch.equal(cached_embeds("key", lambda: torch.ones(3, 4)), torch.ones(3, 4))
        move(source, target)
        moved.append(target)

    monkeypatch.setattr(os, "replace", interrupted)
    assert torch.equal(cached_embeds("key", lambda: torch.ones(3, 4)), torch.ones(3, 4))
    assert [str(target) for target in moved] == [str(folder / "key.safetensors")]
    assert files_of(folder) == [folder / "key.safetensors"]
    assert torch.equal(load_file(folder / "key.safetensors")["embeds"], torch.ones(3, 4))
    assert warned == []


WRITER = """
import json, sys, time, torch
from pathlib import Path
from hf_oodclip import text_cache

own, other, first, num_keys = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
warnings, right, deadline = [], [], time.monotonic() + 60
text_cache.logger.warning = warnings.append

def embeds_of(key, wait):
    if wait:
        raise LookupError
    return torch.arange(500_000.0) + key

for key in range(num_keys):
    Path(f"{own}.{key}").touch()
    while not Path(f"{other}.{key}").exists():
        assert time.monotonic() < deadline
    # By turns: both write, I write and the other looks for it, the other way round.
    wait = key % 3 == 1 + first
    embeds = None
    while embeds is None:
        assert time.monotonic() < deadline
        try:
            embeds = text_cache.cached_embeds(f"key{key}", lambda: embeds_of(key, wait))
        except LookupError:
            pass
    right.append(torch.equal(embeds, embeds_of(key, False)))
print(json.dumps({"right": right, "warnings": warnings}))
"""


def test_two_processes_may_write_and_read_one_key_at_once(folder: Path, tmp_path: Path) -> None:
    num_keys = 30
    names = [str(tmp_path / "first"), str(tmp_path / "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, names[order], names[1 - order], str(order), str(num_keys)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (0, 1)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        assert json.loads(output) == {"right": [True] * num_keys, "warnings": []}
    assert [file.name for file in files_of(folder)] == sorted(f"key{key}.safetensors" for key in range(num_keys))
    for key in range(num_keys):
        assert torch.equal(load_file(folder / f"key{key}.safetensors")["embeds"], torch.arange(500_000.0) + key)
