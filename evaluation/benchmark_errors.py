"""The errors of benchmark definitions and of the data they name."""

from __future__ import annotations

from hf_oodclip.errors import OODCLIPError

__all__ = ["BenchmarkError", "MissingSet"]


class BenchmarkError(OODCLIPError, ValueError):
    """A benchmark, or a list of classes it names, is malformed; the message says where and how."""


class MissingSet(OODCLIPError, FileNotFoundError):  # noqa: N818
    """The images of a set are not here; the message says what to fetch from where and where to put it."""
