"""NFT as the paper writes it (one image at a time, every moved text feature built), and helpers of its tests."""

import torch
from torch.nn.functional import normalize

from hf_oodclip.adapters.nft import NFTLayer


def moved_texts(parameters, config, image, labels, negatives):
    """Return c' of labels and negatives for one image `[D]`, from parameters named as in an adapter file."""
    get = {name.removeprefix("tuned_"): value for name, value in parameters.items()}
    shared = config.variant in ("uni", "constant")

    def network(name, group, features):
        row = 0 if shared else group
        hidden = torch.relu(features @ get[f"{name}_down_weight"][row].T + get[f"{name}_down_bias"][row])
        out = hidden @ get[f"{name}_up_weight"][row].T + get[f"{name}_up_bias"][row]
        return config.residual_scale * out

    moved = []
    for group, classes in enumerate((labels, negatives)):
        if config.variant == "mlp":
            scale, shift = torch.ones_like(classes), network("text", group, classes)
        elif config.variant == "class_specific":
            rows = slice(0, len(labels)) if group == 0 else slice(len(labels), None)
            scale, shift = 1 + get["scale"][rows], get["shift"][rows]
        else:
            row = 0 if shared else group
            scale, shift = 1 + get["scale"][row].expand_as(classes), get["shift"][row].expand_as(classes)
        if config.conditional:
            shift = shift + network("shift", group, image)
            if config.variant != "mlp":
                scale = scale + network("scale", group, image)
        moved.append(normalize(scale * classes + shift, dim=-1))
    return moved


def slow_cosines(parameters, config, images, labels, negatives, queries=None):
    """Return cosines of labels and negatives, and knowledge cosines of both, `[B, (Q,) ...]`, in a loop."""
    images, labels, negatives = (normalize(embeds, dim=-1) for embeds in (images, labels, negatives))
    queries = images if queries is None else normalize(queries, dim=-1)
    rows = []
    for image, asked in zip(images, queries, strict=True):
        moved = moved_texts(parameters, config, image, labels, negatives)
        kept = [(one * other).sum(-1) for one, other in zip(moved, (labels, negatives), strict=True)]
        rows.append([asked @ moved[0].T, asked @ moved[1].T, *kept])
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def randomise(model, seed=0, size=0.2):
    """Give every NFT parameter of a model a random value, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "tuned_" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def layer_of(model):
    """The NFT layer of a model."""
    return next(module for module in model.modules() if isinstance(module, NFTLayer))


def parameters_of(layer, adapter_name="default"):
    """The parameters of one adapter, by name."""
    return {
        name: getattr(layer, name)[adapter_name]
        for name in layer.adapter_layer_names
        if adapter_name in getattr(layer, name)
    }


def cosines_of(model, image_embeds):
    """Cosines with labels and negatives, `[B, N + M]`."""
    with torch.no_grad():
        inputs = model.score_inputs(image_embeds=image_embeds)
    return torch.cat([inputs.similarity, inputs.negative_similarity], dim=-1)
