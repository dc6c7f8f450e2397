"""Notebook 04: the trained model and its base, measured by lm-evaluation-harness."""
