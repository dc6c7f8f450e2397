"""Notebook 06: the model card and the model folder, ready to be shared."""
