"""Pretraining of the pocket CLIP: the small real checkpoint that ships with the package."""
