"""Training programs of hf_oodclip, imported as `hf_oodclip.training`."""
