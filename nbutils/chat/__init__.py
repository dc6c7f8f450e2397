"""Notebook 05: talking to the model, in Jupyter and in a terminal."""
