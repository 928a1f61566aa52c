"""Benchmarks, the demo and speed scripts of hf_oodclip, imported as `hf_oodclip.evaluation`."""
