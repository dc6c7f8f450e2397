"""Runs the notebooks of a profile through papermill and skips what is done and unchanged."""
