"""The names under which PEFT knows the adapters of this package."""

from __future__ import annotations

import enum

__all__ = ["OODPeftType"]


class OODPeftType(enum.StrEnum):
    """What `peft_type` says in an `adapter_config.json` of this package.

    PEFT's own enum is closed, but its tables are looked up by value: a member of this one equals, and
    hashes as, the string in the file. The names carry ours, so that none of PEFT's can collide.
    """

    OODCLIP_CLIP_ADAPTER = "OODCLIP_CLIP_ADAPTER"
    OODCLIP_CONTEXT_PROMPT = "OODCLIP_CONTEXT_PROMPT"
    OODCLIP_NFT = "OODCLIP_NFT"
    OODCLIP_SSF = "OODCLIP_SSF"
    OODCLIP_TASK_RESIDUAL = "OODCLIP_TASK_RESIDUAL"
