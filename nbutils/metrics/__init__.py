"""Notebook 03: the curves and final numbers of a training run."""
