"""`python -m hf_oodclip` is the `oodclip` command."""

from .cli import main

main()
