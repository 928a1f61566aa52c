"""Named prompt templates, and the checks a template must pass.

A trailing full stop is a token of its own and changes the embedding, so names that differ only by
it are different templates on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import TemplateError, unknown_name

__all__ = ["TEMPLATES", "list_templates", "resolve_templates"]

TEMPLATES: dict[str, tuple[str, ...]] = {
    # CLIP's own default prompt (Radford et al., 2021).
    "photo": ("a photo of a {}.",),
    # MCM (Ming et al., 2022) leaves out the full stop.
    "mcm": ("a photo of a {}",),
    # NegLabel (Jiang et al., 2024) for labels and nouns; OpenOOD-VLM and KR-NFT add a full stop.
    "nice": ("the nice {}",),
    "nice_period": ("the nice {}.",),
    # The same papers, for adjectives.
    "adjective": ("This is a {} photo",),
    "adjective_period": ("This is a {} photo.",),
    # The seven templates Tip-Adapter selected for ImageNet.
    "tip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    # CSP (Chen et al., NeurIPS 2024), labels and nouns; meant for `average="raw"`.
    "csp": (
        "a close-up photo of the nice {}.",
        "a photo with the nice {}.",
        "a good photo with the nice {}.",
        "a photo of the nice {}.",
        "{}",
        "the {}",
        "the good {}",
        "the nice {}",
    ),
}


def list_templates() -> list[str]:
    """Return the names that every `templates=` option accepts.

    Example:
        >>> "photo" in list_templates()
        True
    """
    return sorted(TEMPLATES)


def resolve_templates(templates: str | Sequence[str]) -> list[str]:
    """Return the list of templates behind a name, one template, or a list of templates.

    Args:
        templates: A name from `list_templates()`, a template with one `{}`, or several templates.

    Raises:
        UnknownNameError: A string that is neither a name nor has a `{}`.
        TemplateError: An empty list, or an entry without exactly one `{}`.

    Example:
        >>> resolve_templates("photo")
        ['a photo of a {}.']
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return list(TEMPLATES[templates])
        if "{" not in templates and " " not in templates:
            raise unknown_name("template", templates, TEMPLATES, "A template of your own has one {}.")
        templates = [templates]
    resolved = list(templates)
    if not resolved:
        raise TemplateError("The list of templates is empty; give at least one, such as 'a photo of a {}.'.")
    for template in resolved:
        if not isinstance(template, str) or template.count("{}") != 1 or "{" in template.replace("{}", "", 1):
            raise TemplateError(
                f"Template {template!r} must hold exactly one {{}} where the label goes, as in 'a photo of a {{}}.'."
            )
    return resolved
