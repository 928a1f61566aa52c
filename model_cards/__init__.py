"""Model cards of hf_oodclip, imported as `hf_oodclip.model_cards`."""
