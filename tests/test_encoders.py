"""Patch embeddings: every patch speaks for itself in the last block."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import layer_norm, linear
from transformers import CLIPModel

from hf_oodclip import encoders
from hf_oodclip.errors import CheckpointError


@pytest.fixture(scope="module")
def clip(pocket):
    return CLIPModel.from_pretrained(pocket, dtype=torch.float64).eval()


def slow_patches(clip, pixel_values):
    """Return the patch embeddings from the weights themselves."""
    vision = clip.vision_model
    hidden = vision(pixel_values, output_hidden_states=True).hidden_states[-2]
    weights = vision.encoder.layers[-1].state_dict()
    epsilon = vision.config.layer_norm_eps

    def norm(values, name):
        gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return layer_norm(values, values.shape[-1:], gain, bias, epsilon)

    def apply(values, name):
        return linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    attended = apply(apply(norm(hidden, "layer_norm1"), "self_attn.v_proj"), "self_attn.out_proj")
    hidden = hidden + attended
    inner = vision.encoder.layers[-1].mlp.activation_fn(apply(norm(hidden, "layer_norm2"), "mlp.fc1"))
    hidden = hidden + apply(inner, "mlp.fc2")
    last = vision.post_layernorm
    hidden = layer_norm(hidden, hidden.shape[-1:], last.weight, last.bias, epsilon)
    return linear(hidden, clip.visual_projection.weight)[:, 1:]


@torch.no_grad()
def test_patch_embeddings_follow_the_value_path(clip, pixel_values):
    pixels = pixel_values[:3].double()
    patches = encoders.encode_patches(clip, pixels)
    side = clip.config.vision_config.image_size // clip.config.vision_config.patch_size
    assert patches.shape == (3, side * side, clip.config.projection_dim)
    torch.testing.assert_close(patches, slow_patches(clip, pixels), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_image_comes_out_as_without_patches(clip, pixel_values):
    pixels = pixel_values[:3].double()
    embeds, patches, output = encoders.encode_images_and_patches(clip, pixels, output_hidden_states=True)
    plain, plain_output = encoders.encode_images(clip, pixels, output_hidden_states=True)
    assert torch.equal(embeds, plain)
    assert torch.equal(output.hidden_states[-1], plain_output.hidden_states[-1])
    assert torch.equal(patches, encoders.encode_patches(clip, pixels))
    assert not clip.vision_model.encoder.layers[-1]._forward_pre_hooks


@torch.no_grad()
def test_a_patch_of_the_last_block_does_not_see_the_others(clip, pixel_values):
    block = clip.vision_model.encoder.layers[-1]
    pixels = pixel_values[:1].double()

    def replace_last(_, args):
        changed = args[0].clone()
        changed[:, -1, 0] += 5
        return (changed, *args[1:])

    before = encoders.encode_patches(clip, pixels)
    hook = block.register_forward_pre_hook(replace_last)
    try:
        after = encoders.encode_patches(clip, pixels)
    finally:
        hook.remove()
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert (after[:, -1] - before[:, -1]).abs().max() > 0.1


def test_lora_on_the_value_projection_acts_on_patches(pocket, pixel_values):
    clip = CLIPModel.from_pretrained(pocket).eval()
    before = encoders.encode_patches(clip, pixel_values[:2]).detach()
    last = len(clip.vision_model.encoder.layers) - 1
    config = LoraConfig(
        target_modules=rf".*vision_model\.encoder\.layers\.{last}\.self_attn\.v_proj", init_lora_weights=False
    )
    tuned = get_peft_model(clip, config)
    assert (encoders.encode_patches(tuned.base_model.model, pixel_values[:2]) - before).abs().max() > 1e-3


def test_a_tower_that_is_no_transformer_is_refused(pixel_values):
    clip = SimpleNamespace(vision_model=torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)))
    with pytest.raises(CheckpointError, match="need the vision transformer of CLIP; Sequential is none"):
        encoders.encode_patches(clip, pixel_values[:1])
